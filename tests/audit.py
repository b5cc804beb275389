"""Known vulnerabilities of pinned releases: `python tests/audit.py constraints.txt`, as PyPI knows them.

Asks https://pypi.org/pypi/NAME/VERSION/json of every line NAME==VERSION; needs the standard library alone.
Exit status 0: none is known, 1: some are, and printed, 2: not every release could be asked about.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PYPI = "https://pypi.org"
SECONDS = 30
PIN = re.compile(r"([A-Za-z0-9._-]+)==([^ ;#\\]+)")


class UnreachableError(Exception):
    """A release that could not be asked about; the message says why."""


def vulnerabilities(name: str, version: str, service: str = PYPI) -> list[str]:
    """A line for each that is known and was not withdrawn. Errors: UnreachableError."""
    address = f"{service}/pypi/{name}/{version.partition('+')[0]}/json"
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:
            known = json.load(answer)["vulnerabilities"]
        return [
            f"{name} {version}: {', '.join([one['id'], *one.get('aliases', ())])}, "
            f"fixed in {', '.join(one.get('fixed_in') or ()) or 'no release'}"
            for one in known
            if not one.get("withdrawn")
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreachableError(f"{address}: {' '.join(str(error).split())}") from error


def main(file: Path, service: str = PYPI) -> int:
    pins = [match.groups() for line in file.read_text().splitlines() if (match := PIN.match(line))]
    if not pins:
        print(f"error: {file} pins nothing: give lines NAME==VERSION", file=sys.stderr)
        return 2

    def asked(pin: tuple[str, str]) -> list[str] | UnreachableError:
        try:
            return vulnerabilities(*pin, service)
        except UnreachableError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(asked, pins))
    unknown = [answer for answer in answers if isinstance(answer, UnreachableError)]
    found = [line for answer in answers if isinstance(answer, list) for line in answer]
    for line in found:
        print(line)
    if unknown:
        lacking = f"{len(unknown)} of {len(pins)} releases could not be asked about"
        print(
            f"error: {service} cannot be reached for vulnerabilities: {lacking} ({unknown[0]})",
            file=sys.stderr,
        )
    elif not found:
        print(f"no vulnerability of {len(pins)} releases is known")
    return 1 if found else 2 if unknown else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
