# SPDX-License-Identifier: Apache-2.0
"""Whether a model file holds something of its owner's."""

from __future__ import annotations

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import owned

TEXT = "---\n# A model.\nmodel_spec:\n  name: x\n"
SEALED = owned.seal(TEXT)


def test_a_sealed_file_is_untouched_until_a_line_changes() -> None:
    assert SEALED.startswith("---\n# Written by gb10.cluster; digest of the lines below: ")
    assert SEALED.endswith("# A model.\nmodel_spec:\n  name: x\n")
    assert owned.is_untouched(SEALED)
    for changed in (SEALED + "\n", SEALED.replace("x", "y"), SEALED.replace("# A", "# B"), TEXT, "", "---"):
        assert not owned.is_untouched(changed)


OTHER = owned.seal(TEXT.replace("x", "z"))


@pytest.mark.parametrize(
    ("before", "replace", "write", "keep", "refused"),
    [
        (None, False, True, False, False),
        (SEALED, False, False, False, False),
        (OTHER, False, True, False, False),
        (OTHER, True, True, False, False),
        (TEXT, False, False, False, True),
        (OTHER + "# mine\n", False, False, False, True),
        (OTHER + "# mine\n", True, True, True, False),
    ],
)
def test_what_happens_to_a_file(before: str | None, replace: bool, write: bool, keep: bool, refused: bool) -> None:
    found = owned.decide(before, SEALED, replace)
    assert (found[0], found[1], bool(found[2])) == (write, keep, refused)


def test_an_old_file_has_a_name_that_ansible_does_not_read() -> None:
    assert owned.backup_name("model_x.yml", TEXT) == owned.backup_name("model_x.yml", TEXT)
    assert owned.backup_name("model_x.yml", TEXT) != owned.backup_name("model_x.yml", SEALED)
    assert not owned.backup_name("model_x.yml", TEXT).endswith((".yml", ".yaml", ".json"))
