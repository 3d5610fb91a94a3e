"""setup-env.sh: what it asks, what it writes, and what it never shows."""

from __future__ import annotations

import os
import pty
import select
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
SHELLS = [name for name in ("bash", "dash", "sh") if shutil.which(name)]
WAIT_S = 30.0  # for a script that takes a tenth of a second

# Keys as nobody makes them, for the sake of those who may. All are visible ASCII.
NASTY = [
    "sk-plain_0123",
    "with/slash&amp",
    "dollar$HOME${HOME}$(id)",
    'double"quote',
    "single'quote",
    "both'\"$quotes",
    "back\\slash\\n",
    "trailing\\",
    "'\\",
    "hash#tag",
    "semi;colon|pipe>out<in",
    "bang!star*ask?[x]{y}~",
    "tick`id`",
    "=equals=",
    "&",
    "\\1&\\0",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A clean checkout, as far as the script can see."""
    for name in ("setup-env.sh", ".env.example"):
        shutil.copy(HOUSE / name, tmp_path / name)
    return tmp_path


def run(folder: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The script without a terminal, and with these variables only."""
    return subprocess.run(
        ["bash", *options, str(folder / "setup-env.sh")],
        env={"PATH": os.environ["PATH"], **environ},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )


def sourced(folder: Path, name: str, shell: str = "bash") -> str:
    """What a shell makes of the variable in .env."""
    program = f'set -a; . ./.env; printf "%s" "${name}"'
    return subprocess.run(
        [shell, "-c", program],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": "/wrong"},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=True,
    ).stdout


def composed(folder: Path, name: str) -> str:
    """What docker compose makes of the variable in .env, by the rules of its dotenv reader: nothing is special without
    quotes but blanks and $, nothing in single quotes but \\', and in double quotes \\ before one of $ " \\."""
    written = next(
        line.removeprefix(f"{name}=")
        for line in (folder / ".env").read_text().splitlines()
        if line.startswith(f"{name}=")
    )
    if written[0] not in "'\"":
        assert not set(written) & set(" $#'\"\\`")
        return written
    quote, body = written[0], written[1:-1]
    assert written[-1] == quote
    if quote == "'":
        assert "'" not in body
        assert not body.endswith("\\")
        return body
    value, rest = "", iter(body)
    for character in rest:
        assert character not in '"$'
        value += next(rest) if character == "\\" else character
    return value


def test_keys_from_the_environment(folder: Path) -> None:
    ran = run(folder, OPENAI_API_KEY="sk-1", PORT="81")
    assert ran.returncode == 0, ran.stderr
    assert "sk-1" not in ran.stdout + ran.stderr
    example = (folder / ".env.example").read_text()
    assert (folder / ".env").read_text() == example.replace("# OPENAI_API_KEY=\n", "OPENAI_API_KEY=sk-1\n")
    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
    assert sorted(path.name for path in folder.iterdir()) == [".env", ".env.example", "setup-env.sh"]


@pytest.mark.system
@pytest.mark.parametrize("key", NASTY)
def test_a_key_survives_both_readers(folder: Path, key: str) -> None:
    ran = run(folder, OPENAI_API_KEY=key)
    assert ran.returncode == 0, ran.stderr
    assert [sourced(folder, "OPENAI_API_KEY", shell) for shell in SHELLS] == [key] * len(SHELLS)
    assert composed(folder, "OPENAI_API_KEY") == key
    before = (folder / ".env").read_bytes()
    assert run(folder, OPENAI_API_KEY="another").returncode == 0
    assert (folder / ".env").read_bytes() == before


@pytest.mark.parametrize("key", ["a b", "a\nPORT=1", "a\tb", "ключ", "tick`'quote", "\x7f"])
def test_what_is_no_key_is_refused(folder: Path, key: str) -> None:
    ran = run(folder, ANTHROPIC_API_KEY=key)
    assert ran.returncode == 1
    assert "ANTHROPIC_API_KEY is not a key" in ran.stderr
    assert key not in ran.stdout + ran.stderr
    assert not (folder / ".env").exists()


def test_what_is_in_the_file_stays(folder: Path) -> None:
    written = "# mine\nexport ANTHROPIC_API_KEY='old$key'\nOTHER=\"a b\"\nOPENAI_API_KEY=\n\nPORT=81"
    (folder / ".env").write_text(written)
    (folder / ".env").chmod(0o644)
    ran = run(folder, ANTHROPIC_API_KEY="new", OPENAI_API_KEY="sk-2", PORT="99", OTHER="x")
    assert ran.returncode == 0, ran.stderr
    assert (folder / ".env").read_text() == written.replace("OPENAI_API_KEY=", "OPENAI_API_KEY=sk-2") + "\n"
    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600


def test_a_key_without_a_place_goes_to_the_end(folder: Path) -> None:
    (folder / ".env").write_text("")
    assert run(folder).returncode == 0
    assert (folder / ".env").read_text() == ""
    assert run(folder, OPENAI_API_KEY="k").returncode == 0
    assert (folder / ".env").read_text() == "OPENAI_API_KEY=k\n"


def test_without_any_key_it_says_so(folder: Path) -> None:
    ran = run(folder)
    assert ran.returncode == 0
    assert "No key is set" in ran.stdout
    assert "edgegw demo" in ran.stdout
    assert (folder / ".env").read_text() == (folder / ".env.example").read_text()


def test_a_trace_shows_no_key(folder: Path) -> None:
    ran = run(folder, "-x", OPENAI_API_KEY="sk-traced")
    assert ran.returncode == 0
    assert "sk-traced" not in ran.stdout + ran.stderr


def test_a_folder_in_the_place_of_the_file(folder: Path) -> None:
    (folder / ".env").mkdir()
    ran = run(folder, OPENAI_API_KEY="k")
    assert ran.returncode == 1
    assert ".env is not a file" in ran.stderr


def at_the_terminal(folder: Path, answers: dict[str, str], **environ: str) -> str:
    """All that the terminal shows while somebody types `answers`, each after its prompt."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            ["bash", str(folder / "setup-env.sh")],
            env={"PATH": os.environ["PATH"], **environ},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        ) as script:
            os.close(theirs)
            theirs = -1
            shown = ""
            for prompt, answer in answers.items():
                shown += _until(ours, prompt + " (")
                shown += _until(ours, "): ")
                os.write(ours, answer.encode() + b"\n")
            shown += _until(ours, None)
            assert script.wait(WAIT_S) == 0, shown
        return shown
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


def _until(terminal: int, words: str | None) -> str:
    """What the terminal shows up to and including `words`; with None, up to its end."""
    shown = ""
    while words is None or not shown.endswith(words):
        ready, _, _ = select.select([terminal], [], [], WAIT_S)
        assert ready, f"waited in vain for {words!r} after {shown!r}"
        try:
            piece = os.read(terminal, 1).decode()
        except OSError:  # EIO: the other side is closed
            piece = ""
        if not piece:
            assert words is None, shown
            break
        shown += piece
    return shown


def test_keys_typed_at_a_terminal_are_not_shown(folder: Path) -> None:
    answers = {"OPENAI_API_KEY": "sk-typed$1", "ANTHROPIC_API_KEY": ""}
    shown = at_the_terminal(folder, answers, ANTHROPIC_API_KEY="sk-ambient")
    assert "sk-" not in shown
    assert sourced(folder, "OPENAI_API_KEY") == "sk-typed$1"
    assert sourced(folder, "ANTHROPIC_API_KEY") == "sk-ambient"


def test_enter_keeps_and_typing_replaces(folder: Path) -> None:
    (folder / ".env").write_text("OPENAI_API_KEY='old$1'\nANTHROPIC_API_KEY=old2\n")
    shown = at_the_terminal(folder, {"OPENAI_API_KEY": "", "ANTHROPIC_API_KEY": "new2"}, OPENAI_API_KEY="ambient")
    assert "Enter keeps the one in .env" in shown
    assert (folder / ".env").read_text() == "OPENAI_API_KEY='old$1'\nANTHROPIC_API_KEY=new2\n"
