"""The imports before the workers are forked: the first request of a worker must not wait for imports."""

import json
import subprocess
import sys

from narcore.formats.signature import SecretKey
from tests.builders import binary_cache
from tests.server.conftest import HELLO, HELLO_PATH
from tests.server.slowstore import SlowStore

# Prints the modules that the first request imports, and whether ``preload`` has started a thread.
_PROGRAM = """
import json, sys, threading
import narserve.commands.serve
import narserve.server.master
from werkzeug.test import Client
from api.factory import create_app
from narcore.settings import Settings
from narserve.server.preload import preload

url, key, path = sys.argv[1:]
settings = Settings.from_environ({"NAR_CACHE_URL": url, "NAR_TRUSTED_PUBLIC_KEYS": key, "NAR_CACHE_DIR": "off"})
preload(settings)
threads = threading.active_count()
before = set(sys.modules)
response = Client(create_app(settings)).get(path)
print(json.dumps([response.status_code, threads, sorted(set(sys.modules) - before)]))
"""


def test_the_first_request_of_a_worker_imports_nothing() -> None:
    key = SecretKey.generate("test-1")
    with SlowStore(binary_cache({HELLO: {"README": b"hello"}}, secret_key=key)) as store:
        url = store.url.replace("127.0.0.1", "localhost")
        arguments = [url, str(key.public_key), f"{HELLO_PATH}/README"]
        output = subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], stdout=subprocess.PIPE, check=True).stdout
    assert json.loads(output) == [200, 1, []]
