def pytest_addoption(parser):
    parser.addoption(
        "--update-docs", action="store_true", help="rewrite the generated parts of docs/"
    )
