#!/usr/bin/env bash
# Prints where this machine's apt has Debian's main archive from; other releases are there too.
set -euo pipefail

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' "Codename: $codename" \
    'Component: main' 'Origin: Debian' | head -n 1)
if [ -z "$site" ]; then
    echo "debian-site.sh: apt has no \"$codename main\" of Debian, where the other releases would be found too" >&2
    exit 1
fi
echo "$site"
