"""Seeds that depend on a name, so that random numbers do not depend on the order of the work; digests of content."""

import hashlib
import json
from typing import Any


def derived_seed(seed: int, name: str) -> int:
    """The seed, from 0 to 2**63 - 1, of the random numbers of one image, or of anything else with a name."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def json_digest(content: Any) -> str:
    """A digest of plain values, to recognise them."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
