"""Hooks of the documentation site: files outside docs/ that its pages link to.

Links such as ../results/rcn-6-mtfl.json work on GitHub. In the site the result files are copied to results/, and the
links are rewritten, so that `mkdocs build --strict` checks them. The site also gets the page of `recombinator web` for
shipped face models, in demo/.
"""

import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
DEMOS = {"5": "rcn-6-fast-mtfl-int8", "68": "rcn-68-300w-int8"}
PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def on_files(files, config):
    """Add result files and the pages of the repository's root."""
    for path in sorted((ROOT / "results").rglob("*.json")):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for name, source in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrite links that leave docs/, and links of the root's pages into it."""
    if page.file.src_uri in PAGES:
        return markdown.replace("](docs/", "](")
    return markdown.replace("](../results/", "](results/")


def on_post_build(config):
    """Write the pages that run models in the browser; both use the first one's runtime."""
    from recombinator.deploy.web import write_page
    from recombinator.utils.errors import InputError

    try:
        for i, (name, model) in enumerate(DEMOS.items()):
            shared = f"../{next(iter(DEMOS))}/runtime/" if i else None
            write_page(model, Path(config["site_dir"]) / "demo" / name, runtime_url=shared)
    except InputError as error:
        print(f"the site has no demo: {error}", file=sys.stderr)
