"""`make reproduce`: tables are printed, one self-contained page is written, and what all programs share behaves."""

from __future__ import annotations

import importlib
import sys
import types
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

from examples import common, report, reproduce
from examples.common import InputError, Section, Table

pytest.importorskip("matplotlib")


class Page(HTMLParser):
    """Tags must close in order; whatever a page would fetch is collected."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        links = (value or "" for name, value in attributes if name in ("src", "href"))
        self.fetched += [link for link in links if not link.startswith(("data:", "#"))]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def section(out: Path) -> Section:
    """A chapter with everything in it, and characters that HTML must not see raw."""
    from examples.drawing import save, subplots

    figure, axes = subplots(2, 1)
    axes.plot([0, 1])
    table = Table("P < Q & R", ("class", "n"), [("<b>bar</b>", 3), ("none", 12)], "a note")
    return Section("A title", "An intro", "a command", "simulated", [table], [(save(figure, out / "f.png"), "caption")])


def test_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    report.write_report(tmp_path / "index.html", "title", "intro", [section(tmp_path)])
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.fetched == []
    assert "&lt;b&gt;bar&lt;/b&gt;" in text and "P &lt; Q &amp; R" in text and "data:image/png;base64," in text
    assert all(word in text for word in ("simulated", "a command", "commit", "processors", "backend"))


def test_reproduce_runs_every_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = []
    for name in reproduce.TASKS:
        task = types.ModuleType(f"examples.{name}.reproduce")
        task.reproduce = lambda out, seed: (seeds.append((out.name, seed)), section(out))[1]
        importlib.import_module(f"examples.{name}")
        monkeypatch.setitem(sys.modules, task.__name__, task)
    assert reproduce.main(["--out", str(tmp_path / "report"), "--seed", "5"]) == 0
    assert seeds == [(name, 5) for name in reproduce.TASKS]
    printed = capsys.readouterr().out
    assert printed.count("P < Q & R") == 3 and f"{'none':<10}  12" in printed
    Page((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str] | None) -> int:
        error = InputError("a\nb")
        error.add_note("while reading c")
        raise error

    assert common.run_command(fail) == 2
    assert capsys.readouterr().err == "error: a b while reading c\n"
    monkeypatch.setenv("MINIDL_TRACEBACK", "1")
    with pytest.raises(InputError):
        common.run_command(fail)


def test_new_folder_is_all_or_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), common.new_folder(out, "mark", overwrite=False) as part:
        (part / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    for text in ("old", "new"):
        with common.new_folder(out, "mark", overwrite=True) as part:
            (part / "mark").write_text(text)
    assert (out / "mark").read_text() == "new"
    with pytest.raises(InputError, match="--overwrite"), common.new_folder(out, "mark", overwrite=False):
        pass
    (out / "mark").unlink()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="not made by this program"), common.new_folder(out, "mark", overwrite=True):
        pass
    assert (out / "thesis.tex").exists()


def test_archives_are_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip is replaced by a stand-in that 'downloads' a small wheel."""
    monkeypatch.setenv("MINIDL_CACHE", str(tmp_path / "cache"))
    calls = []

    def pip(command: list[str], **_: object) -> types.SimpleNamespace:
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        if len(calls) < 3:  # the third call finds no network
            with zipfile.ZipFile(folder / "thing-1.0.whl", "w") as wheel:
                wheel.writestr(zipfile.ZipInfo("data/a.txt"), b"hello")
        return types.SimpleNamespace(stderr="ERROR: no network\n", returncode=1)

    monkeypatch.setattr(common.subprocess, "run", pip)
    with pytest.raises(InputError, match=r"has checksum [0-9a-f]{64}, expected 0"):
        common.pip_archive("thing==1.0", "0" * 64)
    assert not list((tmp_path / "cache" / "thing-1.0").iterdir())
    with zipfile.ZipFile(tmp_path / "same.whl", "w") as wheel:
        wheel.writestr(zipfile.ZipInfo("data/a.txt"), b"hello")
    checksum = common._sha256(tmp_path / "same.whl")
    kept = common.pip_archive("thing==1.0", checksum)
    assert common.pip_archive("thing==1.0", checksum) == kept and len(calls) == 2  # the second time from the cache
    assert list(common.wheel_members(kept, lambda name: name.endswith(".txt"))) == [("data/a.txt", b"hello")]
    with pytest.raises(InputError, match=r"could not fetch other==2\.0: ERROR: no network"):
        common.pip_archive("other==2.0", checksum)
