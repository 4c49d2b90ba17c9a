# SPDX-License-Identifier: Apache-2.0
"""What opens the head's registry to the members alone: certificates of one distribution, and where engines look."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._node import files

#: Where the head keeps them while an image is distributed, root only but for what the registry reads.
RUN = Path("/run/gb10/image-offer")
#: Where every Docker Engine looks at each pull, whichever image store it has.
ENGINE = Path("/etc/docker/certs.d")
#: Lies beside the certificates that this collection gave an engine.
MARK = "gb10-image-distribution"
CLIENT = ("ca.crt", "client.cert", "client.key")

_CONFIG = """\
[req]
distinguished_name = name
[name]
[ca]
default_ca = issue
[issue]
database = {folder}/index.txt
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
unique_subject = no
policy = any
[any]
commonName = supplied
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[server]
subjectAltName = IP:{address}
extendedKeyUsage = serverAuth
[client]
extendedKeyUsage = clientAuth
"""


def prepare(folder: Path, address: str) -> list[list[str]]:
    """Make a directory for certificates; return the commands that make them, without a key on any command line.

    They are valid from a day before until a day after, for clocks that differ.  The authority's key is of no use once
    the commands have run: the caller removes it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    (folder / "index.txt").touch()
    config = folder / "openssl.cnf"
    config.write_text(_CONFIG.format(folder=folder, address=address), encoding="utf-8")
    now = datetime.now(UTC)
    first, last = ((now + timedelta(days=days)).strftime("%Y%m%d%H%M%SZ") for days in (-1, 1))
    dates = ["-startdate", first, "-enddate", last]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    ca = ["openssl", "ca", "-batch", "-notext", "-config", config]
    commands: list[list[object]] = []
    for kind, stem, suffix in (("authority", "ca", "crt"), ("server", "server", "crt"), ("client", "client", "cert")):
        request = folder / f"{stem}.csr"
        made = ["-subj", f"/CN=gb10 image {stem}", "-keyout", folder / f"{stem}.key", "-out", request]
        signer = ["-selfsign"] if stem == "ca" else ["-cert", folder / "ca.crt"]
        issue = ["-extensions", kind, *signer, "-keyfile", folder / "ca.key", *dates]
        commands += [
            ["openssl", "req", "-new", "-config", config, *key, *made],
            [*ca, *issue, "-in", request, "-out", folder / f"{stem}.{suffix}"],
        ]
    return [[str(word) for word in command] for command in commands]


def accept(host: str, certificates: dict[str, str]) -> None:
    """Let this node's Docker Engine know a registry, and itself to it.

    :param host: ``address:port`` of the registry.
    :param certificates: file name → content.
    """
    folder = ENGINE / host
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    (folder / MARK).touch()
    for name in CLIENT:
        files.write(folder / name, certificates[name], 0o600)


def accepted() -> list[Path]:
    """Return what `accept` has written on this node and nothing has removed yet."""
    return sorted(path.parent for path in ENGINE.glob(f"*/{MARK}"))
