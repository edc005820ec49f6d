"""A stand-in for the model hub: repositories in a folder, no network."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest


class FakeHub:
    """A hub that keeps repositories in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        (self.root / repo).mkdir(parents=True, exist_ok=True)

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> SimpleNamespace:
        assert commit_message
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return SimpleNamespace(oid="c0ffee")

    def download(self, repo: str, name: str, *, revision: str | None) -> str:
        path = self.root / repo / name
        if revision not in (None, "c0ffee") or not path.is_file():
            raise FileNotFoundError(f"404 {repo} {revision}")
        return str(path)

    @classmethod
    def put_in_place(cls, root: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
        """Let huggingface_hub talk to a new one; skips the test without that package."""
        huggingface_hub = pytest.importorskip("huggingface_hub")
        made = cls(root)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", made.download)
        return made
