"""Forward paths: the law that turns data into noise."""

from .base import AffinePath, Cond, LocationPath, Path
from .flow import Flow
from .pyramid import PyramidPath
from .shifted import ShiftedPath
from .ve import VE
from .vp import VP

__all__ = ["VE", "VP", "AffinePath", "Cond", "Flow", "LocationPath", "Path", "PyramidPath", "ShiftedPath"]
