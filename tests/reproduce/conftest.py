"""The toy experiment beside these tests can be imported by name, also in a new process."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
