#!/usr/bin/env bash
# Fetches the real documents of `make real` from Debian packages and unpacks them, without root:
#   scripts/fetch_real.sh OUT  ->  OUT/usr/share/gimp/2.0/help/en  (web pages with images)
#                                  OUT/usr/share/tuxpaint/stamps   (captioned images)
set -euo pipefail

if [[ $# -ne 1 ]]; then
  echo "usage: $0 OUT" >&2
  exit 2
fi
for tool in apt-get dpkg-deb; do
  if ! command -v "$tool" >/dev/null; then
    echo "$0: needs $tool (Debian or Ubuntu). Elsewhere, name a folder of your own:" >&2
    echo "  lcl convert html PAGES OUT      lcl convert captions FOLDER OUT" >&2
    exit 1
  fi
done

mkdir -p "$1"
out=$(cd "$1" && pwd)

# fetch PACKAGE PATH: does nothing if OUT/PATH is there, which only a whole unpacking makes.
fetch() {
  if [[ -d "$out/$2" ]]; then
    echo "$out/$2 is there already"
    return
  fi
  local work
  work=$(mktemp -d "$out/.fetch.XXXXXX")
  # apt drops to another user for downloads where it can; that one must be able to write here.
  chmod 755 "$work"
  echo "fetching the package $1 ..."
  if ! (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$1"); then
    rm -rf "$work"
    echo "$0: apt-get cannot download $1. Are its lists up to date (sudo apt-get update)?" >&2
    exit 1
  fi
  dpkg-deb -x "$work"/*.deb "$work/root"
  mkdir -p "$(dirname "$out/$2")"
  mv "$work/root/$2" "$out/$2"
  rm -rf "$work"
}

fetch gimp-help-en usr/share/gimp/2.0/help/en
fetch tuxpaint-stamps-default usr/share/tuxpaint/stamps
