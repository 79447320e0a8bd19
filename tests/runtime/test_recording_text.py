"""Text for a training: files stay whole, and domains apart."""

from simulator.runtime.recording.corpus import OTHER, read_corpus


def test_files_stay_whole_and_domains_apart(text):
    corpus = read_corpus(text, 0, 32)
    assert list(corpus.domains) == ["numbers", "prose"]
    for name, split in corpus.domains.items():
        sides = {
            side: bytes(getattr(split, side)).decode().split("\n")
            for side in ("training", "held_out")
        }
        assert len(sides["training"]) + len(sides["held_out"]) == 4
        contents = {path.read_text() for path in (text / name).glob("[0-9].txt")}
        assert set(sides["training"]) | set(sides["held_out"]) == contents


def test_many_small_domains_become_one(tmp_path):
    for number in range(12):
        (tmp_path / f"d{number:02}").mkdir()
        for part in "ab":
            (tmp_path / f"d{number:02}" / part).write_text(
                f"{number} words of text\n" * (60 - number)
            )
    domains = read_corpus(tmp_path, 0, 16).domains
    assert len(domains) == 8
    assert OTHER in domains


def test_the_standard_library_is_text_of_several_domains():
    corpus = read_corpus(None, 0, 128)
    assert len(corpus.domains) >= 3
    assert all(len(split.training) > len(split.held_out) > 0 for split in corpus.domains.values())
