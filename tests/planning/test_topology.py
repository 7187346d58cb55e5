"""Names of topologies, and the layout to begin with."""

import pytest

from wamjax.errors import UserError
from wamjax.planning.topology import Topology, default_mesh, other_meshes
from wamjax.sharding.mesh import MeshConfig


def test_names_are_read():
    topology = Topology.parse("v5p:8x8x8", slices=2)
    assert (topology.chips, topology.name) == (1024, "2 x v5p:8x8x8")
    assert topology.chip.flops == 459e12


@pytest.mark.parametrize("name", ["v5p", "v5p:8x8", "v9:4x4", "v5e:4x4x4", "v5p:8xx8", "8x8x8", "v6e:0x4"])
def test_names_that_are_none_are_refused(name):
    with pytest.raises(UserError, match="topology"):
        Topology.parse(name)


@pytest.mark.parametrize(
    ("name", "slices", "batch", "expected"),
    [
        ("v5p:8x8x8", 1, 128, MeshConfig(1, 2, 64, 1, 4)),
        ("v5p:8x8x8", 1, 1024, MeshConfig(1, 8, 64, 1, 1)),
        ("v5p:8x8x8", 2, 128, MeshConfig(2, 1, 64, 1, 8)),
        ("v6e:16x16", 1, 128, MeshConfig(1, 1, 128, 1, 2)),
        ("v5p:8x8x8", 1, 32, MeshConfig(1, 1, 32, 2, 8)),
    ],
)
def test_the_default_layout_uses_every_chip_and_two_dimensions_for_parameters(name, slices, batch, expected):
    assert default_mesh(Topology.parse(name, slices), batch, heads=40) == expected


def test_a_batch_that_slices_cannot_share_is_refused():
    with pytest.raises(UserError, match="batch_size 129"):
        default_mesh(Topology.parse("v5p:8x8x8", 2), 129, heads=40)


def test_other_layouts_use_as_many_chips():
    first = MeshConfig(1, 2, 64, 1, 4)
    for other in other_meshes(first, heads=40):
        assert other.data * other.fsdp * other.context * other.tensor == 512
        assert other != first
