"""Artifacts and the store: what every stage leaves behind, named by its content. Knows no torch.

    objects/ab/<sha256>       bytes, read-only             artifacts/<digest>.json   canonical manifest; its sha256 is
        the artifact's name
    refs/<name>               movable names                asked/<key>               key of what was asked -> digest of
        what came out
    runs/<key>/               lock, inputs, cost, checkpoints, news (mode 0700)
    places/<digest>           where a base lies on this machine
    cache/                    what can be rebuilt at any time
    remotes/<sha256 of URL>.json   where names pointed when they were last seen there

Writing is temp file, fsync, rename, fsync of the folder; reading is always verified. `sha256sum artifacts/*.json`
proves the names.
"""

from align.ground.disk import digest_folder, sha256_file
from align.store.artifact import KINDS, Artifact, BaseRecord, Lineage, canonical_json, digest_json, is_digest, question
from align.store.damage import Damage
from align.store.garbage import Garbage
from align.store.graph import Graph, RefSize, sizes
from align.store.hold import Hold, Inputs
from align.store.live import LiveRun, News, live_runs
from align.store.remote.transfer import Transfer
from align.store.run import CostRecord, Run
from align.store.store import Store

__all__ = [
    "KINDS",
    "Artifact",
    "BaseRecord",
    "CostRecord",
    "Damage",
    "Garbage",
    "Graph",
    "Hold",
    "Inputs",
    "Lineage",
    "LiveRun",
    "News",
    "RefSize",
    "Run",
    "Store",
    "Transfer",
    "canonical_json",
    "digest_folder",
    "digest_json",
    "is_digest",
    "question",
    "sha256_file",
    "sizes",
]
