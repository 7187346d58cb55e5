"""wamjax's own store (`data/store.py`)."""

from pathlib import Path

from wamjax.data.linked import open_store
from wamjax.data.readers import Options, Source
from wamjax.data.storage import Place
from wamjax.errors import UserError

TITLE = "wamjax's own episode store"


def recognises(place: Place) -> bool:
    """Whether there is one, finished or not."""
    return (place / "dataset.json").is_file() or bool(place.find("*.array_record"))


def open_dataset(place: Place, options: Options) -> Source:
    """The store in a local folder.

    Raises:
        UserError: it is elsewhere, or not finished.
    """
    if not place.is_local:
        raise UserError(f"{place} is a native store, which is read from a disk of this machine: copy it here")
    return open_store(Path(place.path), options.split, options.encode)
