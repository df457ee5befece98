"""Make parity.npz anew: `python -m tests.data.make_golden`, with the shared material beside us.

It is written only if our networks reproduce the outputs of the reference implementations, at the
same architectures and in the same process; see README.md here.
"""

from __future__ import annotations

import sys

import numpy as np

from tests import parity
from tests.embedder.networks import test_dymn, test_frame_mn, test_mn
from tests.shared import SHARED


def verify() -> None:
    """Fail unless front ends and networks give the golden outputs of the references."""
    test_mn.test_log_mel("default")
    test_mn.test_log_mel_at_16_khz()
    test_mn.test_seeded_weights("mn01")
    test_dymn.test_reproduces_the_reference("dymn04")
    test_frame_mn.test_reproduces_the_reference("fmn04")


def arrays() -> dict[str, np.ndarray]:
    """Everything that the file holds."""
    made = {f"mel/{name}": parity.log_mel(name) for name in parity.FRONT_ENDS}
    for name in parity.NETWORKS:
        model = parity.filled(name)
        answers = parity.answers(model, parity.sound(model.sample_rate))
        made |= {f"{name}/{key}": values for key, values in answers.items()}
    return {key: values.numpy() for key, values in made.items()}


def main() -> int:
    if not SHARED.is_dir():
        print(f"no shared material at {SHARED}", file=sys.stderr)  # noqa: T201
        return 1
    verify()
    np.savez_compressed(parity.FILE, **arrays())  # type: ignore[arg-type]
    print(f"{parity.FILE}: {parity.FILE.stat().st_size / 1000:.0f} kB")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
