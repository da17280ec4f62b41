#!/usr/bin/env bash
# Fetches the real documents of `make real` and `make table1` from Debian and npm packages, without root:
#   scripts/fetch_real.sh OUT  ->  OUT/usr/share/...: manuals (web pages with images), Tux Paint's stamps
#                                  OUT/openmoji, OUT/emoji-datasource-*: emoji with names and keywords
set -euo pipefail

if [[ $# -ne 1 ]]; then
  echo "usage: $0 OUT" >&2
  exit 2
fi
for tool in apt-get dpkg-deb npm; do
  if ! command -v "$tool" >/dev/null; then
    echo "$0: needs $tool (Debian or Ubuntu, and npm). Elsewhere, name a folder of your own:" >&2
    echo "  lcl convert html PAGES OUT      lcl convert captions FOLDER OUT" >&2
    exit 1
  fi
done

mkdir -p "$1"
out=$(cd "$1" && pwd)

# fetch PACKAGE PATH HOW: moves PATH of what HOW unpacks into work/root to OUT/PATH.
# Does nothing if OUT/PATH is there, which only a whole unpacking makes.
fetch() {
  if [[ -d "$out/$2" ]]; then
    echo "$out/$2 is there already"
    return
  fi
  local work
  work=$(mktemp -d "$out/.fetch.XXXXXX")
  chmod 755 "$work" # apt drops to another user for downloads where it can; that one must be able to write here
  echo "fetching the package $1 ..."
  if ! (cd "$work" && mkdir root && "$3" "$1"); then
    rm -rf "$work"
    exit 1
  fi
  mkdir -p "$(dirname "$out/$2")"
  mv "$work/root/$2" "$out/$2"
  rm -rf "$work"
}

from_debian() {
  if ! apt-get -qq -o APT::Sandbox::User=root download "$1"; then
    echo "$0: apt-get cannot download $1. Are its lists up to date (sudo apt-get update)?" >&2
    return 1
  fi
  dpkg-deb -x ./*.deb root
}

from_npm() {
  if ! npm pack --silent "$1" >/dev/null; then
    echo "$0: npm cannot download $1" >&2
    return 1
  fi
  mkdir "root/${1%@*}" && tar -xzf ./*.tgz -C "root/${1%@*}" --strip-components=1
}

fetch gimp-help-en usr/share/gimp/2.0/help/en from_debian
fetch kicad-doc-en usr/share/doc/kicad/help/en from_debian
fetch python-sklearn-doc usr/share/doc/python-sklearn-doc/html from_debian
fetch python-skimage-doc usr/share/doc/python-skimage-doc/html from_debian
fetch tuxpaint-stamps-default usr/share/tuxpaint/stamps from_debian
fetch openmoji@17.0.0 openmoji from_npm
fetch emoji-datasource-google@16.0.0 emoji-datasource-google from_npm
fetch emoji-datasource-twitter@16.0.0 emoji-datasource-twitter from_npm
