"""The hook of mkdocs.yml: which files are the site, and where its one script comes from."""

import base64
import hashlib
import logging
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from infra.local import ROOT
from tests.documents import documents, name, pages

#: Draws the diagrams. Material would load it from another host if the site did not have it.
MERMAID = "@mermaid-js/tiny@11.17.2"
SHA512 = "PmFr1c5cSfNf5AngLLR98DrbvR4U5KeD7I+hQkGqG5w5Veu3QT4dG0qu9f99cpn/sKj2XxRBK0q7EL6hr9NY/A=="
SCRIPT = ROOT / ".tools" / "mermaid-11.17.2.js"
LOG = logging.getLogger("mkdocs.site")


def mermaid() -> Path | None:
    """The script, from the npm registry the first time; None where that is not to be had."""
    if SCRIPT.exists() or shutil.which("npm") is None:
        return SCRIPT if SCRIPT.exists() else None
    with tempfile.TemporaryDirectory() as folder:
        pack = [
            "npm",
            "pack",
            "--silent",
            "--fetch-retries=0",
            "--pack-destination",
            folder,
            MERMAID,
        ]
        if subprocess.run(pack, stdout=subprocess.DEVNULL).returncode:
            return None
        [archive] = Path(folder).glob("*.tgz")
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != SHA512:
            raise ValueError(f"{MERMAID} has the SHA-512 {digest}, not {SHA512}")
        with tarfile.open(archive) as packed:
            packed.extract("package/dist/mermaid.tiny.js", folder, filter="data")
        SCRIPT.parent.mkdir(exist_ok=True)
        shutil.move(Path(folder) / "package/dist/mermaid.tiny.js", SCRIPT)
    return SCRIPT


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    for title, folder in (("Decisions", "docs/decisions"), ("Reports", "reports")):
        for part in config.nav or []:
            if title in part:
                part[title] = [{page: name(path)} for page, path in pages(folder).items()]
    if mermaid() is None:
        LOG.info("Diagrams stay text: npm, which provides the script that draws them, failed")
        config.extra_javascript.clear()
        config.mdx_configs["pymdownx.superfences"]["custom_fences"] = []
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of `docs_dir` by those of the repository, each where it has them."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    others = [*(ROOT / "reports").glob("*.png"), *(ROOT / "docs").glob("*.[jc]s*")]
    # A README in a folder only leads to the pages here.
    written = [path for path in documents() if ".github" not in path.parts]
    kept = [path for path in written if path.name != "README.md" or path.parent == ROOT]
    for path in [*kept, *(ROOT / "reports").glob("*.md"), *others]:
        files.append(File(name(path), str(ROOT), config.site_dir, config.use_directory_urls))
    if config.extra_javascript:
        script = File.generated(config, "assets/mermaid.js", abs_src_path=str(SCRIPT))
        files.append(script)
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Leave out the links to GitHub's own pages, which CHANGELOG.md ends with."""
    return re.sub(r"^\[[^]]+\]: \.\./\.\./.*$", "", markdown, flags=re.M)
