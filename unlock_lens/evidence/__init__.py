"""Evidence: does the capability really arrive?"""

from unlock_lens.errors import require

require("evidence", "filelock", "jinja2", "pandas", "plotly", "rich", "scipy", "yaml")
