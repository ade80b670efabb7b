"""`bench leaderboard`: pages that follow from their records, and those that do not."""

from tests.helpers import ROOT, call
from tests.report.helpers import HALF, record, stored

RECORDS = ROOT / "leaderboards" / "records"


def test_committed_boards_follow_from_committed_records(capsys):
    code, out, _ = call(capsys, "leaderboard", str(RECORDS), "--check")
    assert code == 0, out
    assert out.count("follows from") == len(list(RECORDS.glob("*/board.toml"))) == 16


def test_a_page_that_does_not_follow_is_told_with_what_makes_it(capsys, tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    stored(folder, record("a", HALF))
    (folder / "board.toml").write_text('title = "Mine"\npage = "../mine.md"\n')
    page = tmp_path / "mine.md"
    code, out, _ = call(capsys, "leaderboard", str(tmp_path), "--check")
    assert code == 1 and "mine.md: is not there; bench leaderboard" in out
    assert call(capsys, "leaderboard", str(folder), "--out", str(page))[0] == 0
    assert page.read_text().startswith("# Mine\n")
    assert call(capsys, "leaderboard", str(tmp_path), "--check")[0] == 0
    page.write_text(page.read_text().replace("50.0", "60.0"))
    code, out, _ = call(capsys, "leaderboard", str(tmp_path), "--check")
    assert code == 1 and "other lines, first" in out and str(page) in out


def test_a_board_file_that_says_nonsense_is_one_line(capsys, tmp_path):
    stored(tmp_path, record("a", HALF))
    file = tmp_path / "board.toml"
    for text in ("[", "titel = 'x'", "[protocol]\nstochastic = ['pgd+x']", "title = 1"):
        file.write_text(text)
        code, out, told = call(capsys, "leaderboard", str(tmp_path))
        assert code == 2 and not out and told.count("\n") == 1 and "board.toml" in told
    file.unlink()
    code, _, told = call(capsys, "leaderboard", str(tmp_path), "--check")
    assert code == 2 and "names a page" in told
    assert call(capsys, "leaderboard", str(tmp_path), "--check", "--format", "md")[0] == 2
