# Sourced by the launch scripts from the root of the repository: makes .venv and fills it.

# Where this is set, each of the many processes compiles every module that it imports anew: 7 s.
unset PYTHONDONTWRITEBYTECODE

# env_install FILE...: installs requirement files; does nothing for a file installed unchanged before.
env_install() {
  local python=${PYTHON:-python3} file stamp hash
  if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "error: $python is not Python 3.11 or later; set PYTHON to one that is" >&2
      return 2
    fi
    echo "making .venv" >&2
    "$python" -m venv --clear .venv || return
  fi
  for file in "$@"; do
    stamp=.venv/installed-${file//\//-}
    hash=$(.venv/bin/python -c \
      'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$file")
    if [ "$(cat "$stamp" 2>/dev/null)" != "$hash" ]; then
      echo "installing $file" >&2
      # --no-compile: modules are compiled when first imported, most never are
      .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check \
        -r "$file" || return
      echo "$hash" > "$stamp"
    fi
  done
}
