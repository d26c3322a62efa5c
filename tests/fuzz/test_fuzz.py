"""Random right and wrong calls, commands, files and configurations from fixed seeds: nothing may end in a traceback,
hang, or be wrong without a word. `make fuzz` runs 2,000 cases; the default suite a twentieth."""

import os
from random import Random

import calls
import commands
import configs
import files
import oracle
import pytest
from isolation import outcome

import networks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

TOTAL = int(os.environ.get("ORNSTEIN_FUZZ", "100"))
CHUNKS = 4
KINDS = {
    "calls": (calls.cases, 0.25),
    "networks": (networks.cases, 0.1),
    "commands": (commands.cases, 0.2),
    "files": (files.cases, 0.15),
    "configs": (configs.cases, 0.15),
    "oracle": (oracle.cases, 0.15),
}


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_is_tried_at_random_ends_in_a_traceback_a_hang_or_a_silent_wrong_result(kind, chunk, places):
    make, share = KINDS[kind]
    found = []
    for number in range(chunk, max(1, round(TOTAL * share)), CHUNKS):
        random = Random(f"{kind} {number}")
        text, case = make(random, places)
        wrong = outcome(case)
        if wrong:
            found.append(f"{kind} {number}: {text}\n    {wrong.strip()[-1500:]}")
    assert not found, f"{len(found)} faults:\n" + "\n".join(found)
