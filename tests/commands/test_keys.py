"""`gateway keys`: what it writes, prints and refuses."""

from __future__ import annotations

import re
import stat
import threading
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from gateway.auth.apikeys import Keyring
from gateway.auth.keyfile import parse_file, write_entries
from gateway.cli import main
from gateway.commands import keys as keycommands
from gateway.errors import TokenRevoked


def call(*words: object) -> Result:
    return CliRunner().invoke(main, ["keys", *map(str, words)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def create(file: Path, *words: object) -> str:
    """Make a key; standard output has it and nothing else."""
    result = call("create", "--file", file, "--subject", "ci", *words)
    assert result.exit_code == 0, result.output
    return result.stdout.removesuffix("\n")


def keyring(file: Path) -> Keyring:
    parsed = parse_file(file.read_bytes())
    assert parsed.skipped == ()
    return Keyring(parsed.keys)


class TestCreate:
    def test_the_key_that_is_printed_is_good(self, file):
        """And the file, which is the owner's alone, has its hash and not the key."""
        key = create(
            file, "--scope", "a b", "--scope", "c", "--claim", 'rooms=["1"]', "--expires", "2100-01-01", "--id", "ci-1"
        )
        principal = keyring(file).verify(key, time.time())
        assert (principal.subject, principal.scopes, principal.claims["rooms"]) == ("ci", {"a", "b", "c"}, ["1"])
        assert principal.expires_at == 4_102_444_800.0
        assert key.startswith("gwk_ci-1_")
        assert key not in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert [path.name for path in file.parent.iterdir()] == ["keys.yaml"]

    def test_each_key_has_an_id_and_a_secret_of_its_own(self, file):
        """Random ones, where none is given."""
        made = [create(file) for _ in range(3)]
        assert len({key.split("_")[1] for key in made}) == len({key[-49:] for key in made}) == 3
        assert all(re.fullmatch(r"gwk_[a-z0-9]{8}_[0-9A-Za-z]{49}", key) for key in made)
        assert all(keyring(file).verify(key, 0.0).expires_at is None for key in made)

    def test_days_count_from_now(self, file):
        """As people think of a rotation."""
        before = time.time()
        key = create(file, "--expires", "90d")
        expires = keyring(file).verify(key, 0.0).expires_at
        assert -1 <= expires - before - 90 * 86400 < 60

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--id", "A_B"], "expected an id"),
            (["--id", "old"], "--id: old is in the file already"),
            (["--expires", "soon"], "or days such as 90d"),
            (["--expires", "2020-01-01"], "expected a time to come"),
            (["--claim", "x"], "expected NAME=JSON"),
            (["--claim", "sub=1"], "expected claims other than"),
            (["--subject", "a\nb"], "expected a subject"),
        ],
    )
    def test_what_is_wrong_on_the_command_line_is_exit_code_2(self, file, words, said):
        """And the file stays as it was."""
        create(file, "--id", "old")
        before = file.read_bytes()
        result = call("create", "--file", file, "--subject", "ci", *words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert said in " ".join(result.stderr.replace("│", "").split())
        assert file.read_bytes() == before

    def test_a_file_keeps_its_mode_and_a_link_stays_one(self, file, tmp_path):
        """The gateway may read it as another user of the same group."""
        real = tmp_path / "real.yaml"
        real.touch(0o640)
        real.chmod(0o640)
        file.symlink_to(real)
        create(file)
        assert file.is_symlink()
        assert stat.S_IMODE(real.stat().st_mode) == 0o640

    def test_two_at_once_lose_nothing(self, file):
        """Each begins with what the other has written."""
        reached = threading.Event()

        def add(entries: dict[str, object]) -> None:
            reached.set()
            entries["first"] = {"hash": "sha256:" + "0" * 64, "subject": "x"}

        first = threading.Thread(target=keycommands._change, args=(file, add))
        with keycommands._alone(file.parent):
            first.start()
            assert not reached.is_set()
            file.write_bytes(write_entries({"zero": {}}))
        first.join()
        create(file, "--id", "second")
        assert list(yaml.safe_load(file.read_text())) == ["zero", "first", "second"]


class TestList:
    def test_every_key_is_a_line(self, file):
        """With what an operator asks: whose, still good, until when."""
        create(file, "--id", "a", "--scope", "x y", "--expires", "2100-01-01")
        create(file, "--id", "b")
        call("revoke", "--file", file, "b")
        entries = yaml.safe_load(file.read_text())
        entries["c"] = entries["a"] | {"expires": "2020-01-01"}
        entries["d"] = {"hash": "x", "subject": "x"}
        file.write_text(yaml.safe_dump(entries))
        result = call("list", "--file", file)
        assert (result.exit_code, result.stderr) == (0, "")
        assert [line.split() for line in result.stdout.splitlines()] == [
            ["ID", "SUBJECT", "STATE", "EXPIRES", "SCOPES"],
            ["a", "ci", "good", "2100-01-01T00:00:00Z", "x", "y"],
            ["b", "ci", "revoked", "never"],
            ["c", "ci", "expired", "2020-01-01T00:00:00Z", "x", "y"],
            ["d", "-", "unusable", "-", "expected", "as", "hash", "sha256:", "and", "64", "hexadecimal", "digits"],
        ]


class TestRevoke:
    def test_a_revoked_key_is_refused_as_such(self, file):
        """It stays in the file, and the time of the first revocation with it."""
        key, other = create(file, "--id", "a"), create(file, "--id", "b")
        assert call("revoke", "--file", file, "a").exit_code == 0
        with pytest.raises(TokenRevoked):
            keyring(file).verify(key, 0.0)
        assert keyring(file).verify(other, 0.0)
        before = file.read_bytes()
        assert call("revoke", "--file", file, "a").exit_code == 0
        assert file.read_bytes() == before

    def test_one_that_is_not_there(self, file):
        """Exit code 2: the command line is wrong."""
        create(file)
        result = call("revoke", "--file", file, "nobody")
        assert result.exit_code == 2
        assert "nobody: there is no such key in the file" in result.stderr


@pytest.mark.parametrize("words", [["list"], ["revoke", "a"], ["create", "--subject", "ci"]], ids=lambda words: words[0])
def test_a_file_that_cannot_be_used_is_exit_code_1(file: Path, words: list[str]):
    """In one line, and nothing is written."""
    file.write_text("- a")
    result = call(*words, "--file", file)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "gateway: the file of API keys: expected a mapping of ids to entries\n"
    assert file.read_text() == "- a"
    result = call(*words, "--file", file / "none" / "keys.yaml")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("gateway: [Errno ")


def test_a_write_that_fails_leaves_nothing_behind(file: Path, monkeypatch: pytest.MonkeyPatch):
    """The old file stays whole."""
    create(file)
    before = file.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keycommands.os, "fsync", full)
    result = call("create", "--file", file, "--subject", "ci")
    assert (result.exit_code, result.stderr) == (1, "gateway: [Errno 28] No space left on device\n")
    assert file.read_bytes() == before
    assert len(list(file.parent.iterdir())) == 1


@pytest.mark.parametrize("command", ["create", "list", "revoke"])
def test_the_help_has_an_example(command: str):
    """Which stands as it is to be typed."""
    assert re.search(rf"^ *gateway keys {command} --file keys\.yaml", call(command, "--help").stdout, re.MULTILINE)
