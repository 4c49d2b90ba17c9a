# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import jinja2

from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import (
    blacklist,
    kho_fault,
    parse_meminfo,
    parse_os_release,
    parse_systemctl_show,
    parse_tcp_listeners,
    unit_names,
)

REPO = Path(__file__).resolve().parents[4]
MEMINFO = """\
MemTotal:       125513372 kB
MemAvailable:   119003392 kB
HugePages_Total:       0
CmaTotal:         131072 kB
CmaFree:          {free} kB
"""


def test_os_release() -> None:
    text = 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\nID=ubuntu\nVERSION_ID="24.04"\n# ID=other\n\nNAME=\'Ubuntu\'\nEMPTY=\n'
    release = parse_os_release(text)
    assert release == {
        "PRETTY_NAME": "Ubuntu 24.04.3 LTS",
        "ID": "ubuntu",
        "VERSION_ID": "24.04",
        "NAME": "Ubuntu",
        "EMPTY": "",
    }


def test_meminfo() -> None:
    found = parse_meminfo(MEMINFO.format(free=1000))
    assert found["MemTotal"] == 125513372
    assert found["HugePages_Total"] == 0


def test_kho_fault() -> None:
    assert not kho_fault(parse_meminfo(MEMINFO.format(free=131072)))
    assert kho_fault(parse_meminfo(MEMINFO.format(free=131073)))
    assert not kho_fault({})


def test_systemctl() -> None:
    assert parse_systemctl_show("ActiveState=active\nExecStart={ path=/bin/x ; a=b }\n") == {
        "ActiveState": "active",
        "ExecStart": "{ path=/bin/x ; a=b }",
    }
    assert unit_names("vllm-a.service loaded active running vLLM a\n\nssh.service loaded\n") == [
        "vllm-a.service",
        "ssh.service",
    ]


# From a Debian 12 node: sshd everywhere, Docker's resolver on the loopback, an established connection. What stands
# between the state and the inode is the same in every line.
REST = "00000000:00000000 00:00000000 00000000     0        0"
PROC_TCP = f"""\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A {REST} 39512 1 0000000000000000 100 0 0 10 0
   1: 0B00007F:9A2F 00000000:0000 0A {REST} 37123 1 0000000000000000 100 0 0 10 0
   2: 0B00D50A:1388 00000000:0000 0A {REST} 40001 1 0000000000000000 100 0 0 10 0
   3: 0B00D40A:0016 0100D40A:C5F2 01 {REST} 38400 4 0000000000000000 20 4 29 10 -1
"""
ANY = "00000000000000000000000000000000"
PROC_TCP6 = f"""\
  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: {ANY}:1F40 {ANY}:0000 0A {REST} 39514 1 0000000000000000 100 0 0 10 0
   1: 00000000000000000000000001000000:0277 {ANY}:0000 0A {REST} 39515 1 0000000000000000 100 0 0 10 0
"""


def test_tcp_listeners() -> None:
    found = parse_tcp_listeners(PROC_TCP)
    assert [(each.address, each.port, each.everywhere, each.loopback) for each in found] == [
        ("0.0.0.0", 22, True, False),
        ("127.0.0.11", 39471, False, True),
        ("10.213.0.11", 5000, False, False),
    ]
    assert found[0].inode == "39512"
    assert [(each.address, each.port, each.loopback) for each in parse_tcp_listeners(PROC_TCP6)] == [
        ("::", 8000, False),
        ("::1", 631, True),
    ]
    assert parse_tcp_listeners("") == []


def test_what_unattended_upgrades_leave_alone() -> None:
    """As the role host writes it, with the comment and the switch that stand beside the list."""
    template = (REPO / "roles" / "host" / "templates" / "unattended-upgrades.j2").read_text(encoding="utf-8")
    packages = ["linux-", "docker", "runc"]
    assert blacklist(jinja2.Template(template).render(host_held_packages=packages)) == packages
    assert blacklist("") == []
    assert blacklist('Unattended-Upgrade::Automatic-Reboot "false";') == []
