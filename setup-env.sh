#!/usr/bin/env bash
# Asks for the providers' keys and writes them to .env, readable by its owner alone.
#
#   ./setup-env.sh                         asks; Enter keeps what is there
#   OPENAI_API_KEY=… ./setup-env.sh < /dev/null     asks nothing: takes a missing key from the environment
#
# Everything else in .env stays as it is; without a .env, it begins as a copy of .env.example. A key is never printed
# and never an argument of another program. Values are written so that `. ./.env` and docker compose read the same.
# Runs with the bash 3.2 of macOS.

set -euo pipefail
set +x # even under `bash -x`: a trace would show the keys
umask 077

readonly KEYS=(OPENAI_API_KEY ANTHROPIC_API_KEY)

cd "$(dirname "${BASH_SOURCE[0]}")"

# Prints the value as a .env file holds it. Fails for what no key can be, and for what the two readers of the file would
# not read alike: between double quotes the shell wants \` where compose wants `.
quoted() {
  local LC_ALL=C value=$1 escaped='' i c
  case $value in
    *[!\!-~]*) return 1 ;;
    *[!A-Za-z0-9_./:@%+=,-]*) ;;
    *) printf '%s' "$value" && return ;;
  esac
  case $value in
    *"'"* | *\\) ;; # compose takes \' for a quote that is part of the value
    *) printf "'%s'" "$value" && return ;;
  esac
  for ((i = 0; i < ${#value}; i++)); do
    c=${value:i:1}
    case $c in
      '`') return 1 ;;
      \\ | '"' | '$') escaped+=\\ ;;
    esac
    escaped+=$c
  done
  printf '"%s"' "$escaped"
}

# What line $1 of an env file is to variable $2: set, empty, comment (its place), or other.
part() {
  case ${1#export } in
    "$2=" | "$2="[[:space:]]* | "$2=''" | "$2=\"\"") printf empty ;;
    "$2="*) printf set ;;
    "# $2="* | "#$2="*) printf comment ;;
    *) printf other ;;
  esac
}

# Sets $answer to what was typed for variable $1, empty where nobody is asked.
ask() {
  answer=
  if [ -t 0 ]; then
    read -rs -p "$1 ($2): " answer || true
    echo >&2
  fi
}

source_file=.env
[ -e .env ] || source_file=.env.example
if [ ! -f "$source_file" ]; then
  echo "setup-env: $source_file is not a file" >&2
  exit 1
fi

lines=()
while IFS= read -r line || [ -n "$line" ]; do
  lines+=("${line%$'\r'}")
done < "$source_file"

missing=0
for name in "${KEYS[@]}"; do
  at=-1
  kept=no
  for ((i = 0; i < ${#lines[@]}; i++)); do
    case $(part "${lines[i]}" "$name") in # the last assignment counts, as for every reader
      set) at=$i kept=yes ;;
      empty) at=$i kept=no ;;
      comment) [ "$at" -ge 0 ] || at=$i ;;
    esac
  done

  from_environment=${!name-}
  if [ "$kept" = yes ]; then
    ask "$name" "Enter keeps the one in .env"
  elif [ -n "$from_environment" ]; then
    ask "$name" "Enter takes the one in the environment"
    answer=${answer:-$from_environment}
  else
    ask "$name" "Enter leaves it out"
  fi

  if [ -z "$answer" ]; then
    [ "$kept" = yes ] || missing=$((missing + 1))
    continue
  fi
  if ! value=$(quoted "$answer"); then
    echo "setup-env: the value of $name is not a key: blanks, line breaks or characters that .env cannot hold" >&2
    exit 1
  fi
  if [ "$at" -ge 0 ]; then
    lines[at]=$name=$value
  else
    lines+=("$name=$value")
  fi
done

fresh=$(mktemp .env.XXXXXX)
trap 'rm -f "$fresh"' EXIT
chmod 600 "$fresh"
[ "${#lines[@]}" -eq 0 ] || printf '%s\n' "${lines[@]}" > "$fresh"
mv -f "$fresh" .env

echo "Wrote .env (mode 600)."
if [ "$missing" -eq "${#KEYS[@]}" ]; then
  echo "No key is set. \`edgegw demo\` needs none; for real answers set ${KEYS[*]}, or one of them."
fi
