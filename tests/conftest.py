import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are tiny: more threads only wait


def pytest_addoption(parser):
    parser.addoption(
        "--update-docs", action="store_true", help="rewrite the generated parts of docs/"
    )
