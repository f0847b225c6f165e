"""A cron job: it deletes the rentals of dead processes, and exits with 1 if one may still be rented."""

import logging
import sys

from netmind_rentgpu import RentGPU, RentGPUError

logging.basicConfig(level=logging.INFO, format="%(message)s")


def main() -> int:
    try:
        with RentGPU() as gpu:
            report = gpu.rentals.reap()
    except RentGPUError as error:
        print(error, file=sys.stderr)
        return 2
    for name, problem in report.failed:
        print(f"{name}: {problem}", file=sys.stderr)
    print(f"deleted {len(report.deleted)}")
    return 0 if report.clean else 1


sys.exit(main())
