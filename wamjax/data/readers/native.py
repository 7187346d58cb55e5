"""wamjax's own store (`data/store.py`)."""

from pathlib import Path

from wamjax.data.readers import Options, Source
from wamjax.data.storage import Place
from wamjax.data.store import EpisodeStore

TITLE = "wamjax's own episode store"


def recognises(place: Place) -> bool:
    """Whether there is one, finished or not."""
    return (place / "dataset.json").is_file() or bool(place.find("*.array_record"))


def open_dataset(place: Place, options: Options) -> Source:
    """The store in a local folder."""
    return EpisodeStore(Path(place.path), options.split)
