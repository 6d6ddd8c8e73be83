# Sourced by tools/demo and tools/test: makes .venv and installs densekit into it, each once.

# find_python: prints a Python of 3.11 or newer that can make virtual environments; $PYTHON, if set, is tried first.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python of 3.11 or newer with venv on the PATH; install one, or name it: PYTHON=/path/to/python $0" >&2
  return 2
}

# prepare EXTRA...: leaves a .venv in which densekit and the first EXTRA are installed; any EXTRA that already is serves.
# A stamp keyed by pyproject.toml says what is installed, so that a second run does nothing here.
prepare() {
  local python extra key
  if ! .venv/bin/python -c '' 2>/dev/null; then
    python=$(find_python)
    echo "making .venv with $("$python" --version)" >&2
    "$python" -m venv --clear .venv
  fi
  key=$(.venv/bin/python -c 'import hashlib, pathlib
print(hashlib.sha256(pathlib.Path("pyproject.toml").read_bytes()).hexdigest())')
  for extra in "$@"; do
    if [[ $(cat ".venv/installed-$extra" 2>/dev/null) == "$key" ]]; then
      return
    fi
  done
  echo "installing densekit and its '$1' extra into .venv; the first time takes minutes, most of it for torch" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$1]"
  echo "$key" >".venv/installed-$1"
}
