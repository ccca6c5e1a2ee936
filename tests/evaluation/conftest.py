from toy_fixtures import toy_classifier, toy_manifest, toy_model, toy_path, toy_plugin  # noqa: F401  (fixtures)
