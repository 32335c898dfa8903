"""Model files that come with the package; `index.json` names each with the SHA-256 of its bytes."""
