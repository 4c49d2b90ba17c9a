# SPDX-License-Identifier: Apache-2.0
"""The console of a node: shell commands as root, without its network."""

from __future__ import annotations

from typing import Any

import docker.errors

from lab.errors import LabError

TRIES = 5
END = "=====gb10-lab-end====="
#: lab/node/lab-init leaves this mark when the links have their names.
AWAIT_INIT = """
tries=0
until [ -e /run/gb10-lab/ready ]; do
    tries=$((tries + 1))
    [ $tries -le 3000 ] || { echo "lab-init has not finished after 5 minutes" >&2; exit 1; }
    sleep 0.1
done
"""


def run(container: Any, script: str, **environment: str) -> str:
    """Run a shell script in a node as root over the console; return its output.

    The script must be repeatable: occasionally an exec's output is lost, completely or in part, although the command
    succeeded (docker-py issue 2042). So the last line states how many bytes belong before it.
    """
    checked = f"export LC_ALL=C\nout=$({script}\n:\n) || exit $?\nprintf '%s\\n' \"$out\"\necho '{END}' ${{#out}}"
    for _unused in range(TRIES):
        try:
            code, (out, err) = container.exec_run(
                ["sh", "-c", checked], user="root", environment=environment, demux=True
            )
        except docker.errors.APIError as error:
            raise LabError(f"The console of {container.name} does not answer: {error.explanation or error}") from error
        text = (out or b"").decode(errors="replace")
        if code != 0:
            said = ((err or b"").decode(errors="replace") + text).strip()
            raise LabError(f"On the console of {container.name} a command failed ({code}): {said}")
        answer, found, length = (out or b"").rpartition(f"{END} ".encode())
        if found and length.strip() == str(len(answer) - 1).encode():
            return answer.decode(errors="replace")
    raise LabError(f"The console of {container.name} returned an incomplete answer {TRIES} times in a row.")
