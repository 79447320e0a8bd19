"""The command, for every test that meets it as a user does."""

import pytest


@pytest.fixture
def moesim(tmp_path, monkeypatch, capsys):
    """Run the command in this process, in an empty folder; returns exit status, standard output and
    standard error.
    """
    from simulator import cli

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["moesim", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
