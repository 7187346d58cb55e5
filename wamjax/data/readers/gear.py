"""GEAR datasets (`data/gear.py`), in the names of a robot."""

from wamjax.data import gear
from wamjax.data.readers import Options, Source
from wamjax.data.storage import Place
from wamjax.errors import UserError

TITLE = "LeRobot v2 with the metadata of GR00T and DreamZero"


def recognises(place: Place) -> bool:
    """Never: every GEAR dataset is a LeRobot dataset too, and which robot it is of has to be said."""
    return False


def open_dataset(place: Place, options: Options) -> Source:
    """The episodes, in the names of the embodiment."""
    options.only_train(place)
    if options.embodiment is None:
        raise UserError(f"{place} is read in the names of a robot: give --embodiment")
    return gear.GearSource(gear.open_dataset(place), options.embodiment)
