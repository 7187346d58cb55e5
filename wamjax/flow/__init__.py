"""Flow matching: noise times, targets, weights and samplers. sigma = 1 is noise, 0 is data; velocity = noise - data."""
