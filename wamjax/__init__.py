"""wamjax: World-Action Models in JAX.

Importing the package imports nothing else: every room (``wamjax.nn``, ``wamjax.data``, ...) is imported where
it is used, so that ``wamjax --help`` answers at once and a machine without, say, a simulator can still train.
"""

__version__ = "0.1.0"
