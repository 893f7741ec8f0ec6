"""The demo: pictures that come with the package, and the whole way from scans to a model that crops them."""
