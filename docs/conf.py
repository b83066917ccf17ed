"""How `make docs` builds the reference: from the docstrings, with an error for every reference that leads nowhere."""

from typing import Any

import fused_balanced_loss

project = "fused_balanced_loss"
author = "The maintainers of fused_balanced_loss"
version = release = fused_balanced_loss.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False

# Of a class its own methods with a docstring of their own; what nn.Module has is PyTorch's to document.
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
# What stands before the colon of Returns is dtype and shape, no type that could be looked up.
napoleon_use_rtype = False

nitpicky = True
# These projects' pages would have to be fetched.
nitpick_ignore_regex = [("py:.*", r"(torch|numpy|transformers|collections|os)\..*|Tensor")]


def resolve_by_last_name(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """The reference to an object that docstrings and signatures name by its own module, or by its name alone.

    The pages document an object where users import it from. A name that two objects have stays unresolved.
    """
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    name = node["reftarget"].rpartition(".")[2]
    found = [full for full, entry in domain.objects.items() if full.rpartition(".")[2] == name and not entry.aliased]
    if len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, contnode)


def setup(app: Any) -> None:
    app.connect("missing-reference", resolve_by_last_name)
