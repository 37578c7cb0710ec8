"""The words of commands, and what is exported to them, are those that bash itself passes to a program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_operator.translate.shell.literal import plain
from megatron_operator.translate.shell.statements import read

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
PROGRAM = f"""#!{sys.executable} -IS
import json, os, sys
seen = {{name: value for name, value in os.environ.items() if name.startswith("V_")}}
with open(sys.argv[0] + ".seen", "a") as file:
    file.write(json.dumps([sys.argv[1:], seen]) + "\\n")
"""
WORDS = {
    "an escaped blank behind quotes": 'N=5; show "$N"\\ x --a "$N"\\ x\\ y $N\\  z',
    "a line that goes on behind quotes": 'N=5; show "$N"\\\nx "$N" \\\n y',
    "escapes beside quotes": "N=5; show \"a\"\\\"b\\\" 'a'\\''b' \"$N\"'q w'$N",
    "quotes in an alternative": 'X="a b"; show ${X:+--flag "$X"} ${X:+"--flag=$X"} ${U:-"c d"} "${X:+--flag on}"',
    "blanks around a value": 'X=" a "; show x${X}y "x${X}y" ${X}',
    "numbers of other bases": "N=0x10; show $((N)) $((2#101)) $((010)) $((2**3)) $((1<<4)) $[2+3]",
    "numbers that are compared": '[ 010 -gt 9 ] && show more; [ 08 -eq 8 ] && show "same"',
    "arrays": 'A=(a "b c" d); show "${A[@]}" ${A[@]} "${A[*]}" x"${A[@]}"y "${A[-1]}" "${A[@]: -2}" "${A[@]:1:1}"',
    "an array joined": 'A=(0 1 2); IFS=,; show "${A[*]}" "x${A[*]}"',
    "a text added to an array": 'A=(x z); A+=y; show "${A[@]}"',
    "the end of a text": "X=abc; show ${X: -1} ${X:1:-1} ${X:0:2}",
    "braces beside values": 'X=5; show "$X"/{a,b}.json ${X}{1..2} "{a,b}" {c,d}',
    "words that are set": "set a b; show $2 $#; set -e; show $1; set -o pipefail -- c; show $1 $#; set --; show $#",
    "arguments of a script": "set -- z; bash -c 'show \"$1\" \"$@\" $#' name one 'two 3'; bash -c 'show $#'",
    "fields of a line": "X=1,2,3; IFS=',' read -ra P <<< \"$X\"; show ${P[@]} ${#P[@]}",
    "names of fields": "IFS=: read A B <<< a:b:c; show $A $B",
    "a name that is unset": 'X=1; unset X; show "${X:-none}"; A=(1 2); unset A; show "${A[@]}" end',
    "names of a function": "X=out; f() { local X=in; g; }; g() { show $X; X=g; }; f; show $X",
    "what a file sets": "cat > ./s.sh <<'EOF'\nX=$1\nEOF\nset -- p; source s.sh q; show $X $1; . s.sh; show $X",
    "a file that gets arguments": "cat > s.sh <<'EOF'\nshow $1 $#\nEOF\nbash ./s.sh a b; bash s.sh c",
    "a test that decides between two": "A=5; [[ $A == 5 ]] && show yes || show no; [ $A = 4 ] && show a || show b",
    "a text without its tabs": "v=3; cat > t <<-EOF\n\tk: $v\n\t  l: 'x'\n\tEOF\nshow \"$(cat t)\"",
    "a file of one line": "echo 'show inner $1' > s.sh; echo 'show more' >> s.sh; bash s.sh a; . ./s.sh b",
    "each element": 'A=(a.x b.x); show "${A[@]/#/d/}" ${A[@]%.x} "${A[@]^^}" "${A[@]/.x/.y}"',
    "the start and the end of a value": "X=a.a.a; show ${X/#a/b} ${X/%a/b} ${X/#c/b} ${X/%/z} ${X//[^a]/-} ${X##*[^a]}",
    "numbers of defaults": "show $(( ${N:-2} * 8 )); X=0,1; show $((${#X} > 2)); Y=${X//[^,]/}; show $(( ${#Y} + 1 ))",
    "devices that are counted": (
        "D=0,1,2,3; show $(echo $D | tr ',' '\\n' | wc -l) $(echo $D | awk -F',' '{print NF}')"
        " $(echo $D | tr -d ',' | wc -w) $(seq -s, 0 7) $(seq -s ' ' 3)"
    ),
    "devices that are counted otherwise": (
        "D=0,1,2,3; show $(($(echo $D | tr -cd , | wc -c) + 1)) $(awk -F',' '{print NF}' <<< \"$D\")"
        " $(tr ',' ' ' <<< $D | wc -w) $(echo ${D//,/ } | wc -w)"
    ),
    "one number or another": "P=8; show $((P > 4 ? 2 : 1)) $(( P == 4 ? P : P * 2 )) $((P>9?1:0))",
    "names that are made": (
        "M=Qwen/Qwen3-8B; show $(echo $M | tr '/' '_' | tr '[:upper:]' '[:lower:]') $(echo $M | cut -d/ -f2)"
        " $(echo $M | awk -F/ '{print $1}') $(echo $M | sed 's/Qwen/Q/g') $(echo a-b | cut -d'-' -f1)"
        " $(echo aab | tr -s a) $(echo 'a  _b' | tr -s ' _' '-') $(echo 'a b  c' | awk '{print $3}')"
        " $(echo a1b2 | tr -d 0-9)"
        " $(echo x | cut -d, -f2)"
    ),
    "comments between continued lines": "show \\\n  --a 1 `# first` \\\n  --b '`# no`' `# last`  \\\n  --c 3",
    "a test that is turned round": (
        '[[ ! "x" == "y" ]] && show a; [[ ! x == x ]] || show b; [[ ! -n "" && x = x ]] && show c'
        '; [[ ! ( -z "" || x = x ) ]] || show d; [[ ! x == y || x == z ]] && show e; [[ ! -z "" || -n q ]] && show f'
    ),
    "tests of several values": (
        "A=1 B=2; [[ $A = 1 && $B = 2 ]] && show a; [[ $A = 2 || $B = 2 ]] && show b; [[ $A = 1 && $B = 3 ]] || show c"
        '; [[ -n $A && $B != 3 && -z "" ]] && show d; [[ ($A = 1 || $B = 9) && $A$B == 1* ]] && show e'
        '; [[ $A ]] && show f; [[ $A -eq 1 && $B -gt 1 ]] && show g; [[ $A = "" || -z $B ]] || show h'
        "; [[ $B =~ ^[0-9]+$ && $A = 1 ]] && show i"
    ),
    "numbers of a condition": "if (( ${N:-1} > 1 )); then show a; else show b; fi; N=3; (( ${N:-1} > 1 )) && show c",
    "a name that is first added to": 'for f in a b; do D="$D $f"; done; show $D; F="${F} x"; show [$F]',
    "a name for another": 'f() { local -n r=$1; show "${r[@]}"; }; Z=(1 "2 3"); f Z',
    "words that are quoted for a shell": (
        "A=('a b' \"it's\" '$X' '' a=b,c '~' '#' '{d}!*' 'q\\\\w' $'l\\nm'); C=$(printf '%q ' show \"${A[@]}\")"
        '; eval "$C"; show "$C"'
        '; D="show ${A[*]@Q}"; eval "$D"; show "$D"; bash -c "show ${A[0]@Q}"; bash -c "$(printf "%q " show "${A[@]}")"'
    ),
    "a pipe": "X=1; { X=2; show $X; } | cat; show $X; echo a | while read X; do show $X; done; show $X",
    "a text that is evaluated": "C=\"show --a 'b c'\"; eval $C; $C; Y=1; eval 'Y=2'; show $Y",
}
EXPORTS = {
    "a script sees exported ones": "V_A=1; export V_B=2; bash -c 'show ${V_A:-none} $V_B x'",
    "a document too": "V_A=1; export V_B=2; bash <<'EOF'\nshow ${V_A:-none} $V_B x\nEOF",
    "a file too": "cat > s.sh <<'EOF'\nshow ${V_A:-none} $V_B\nEOF\nV_A=1; export V_B=2; bash s.sh",
    "one that is no longer exported": "export V_A=1; export -n V_A; show x; bash -c 'show ${V_A:-none}'",
    "all": "set -a; V_A=1; set +a; V_B=2; show x",
    "one of a function": "f() { local V_A=1; export V_A; show x; }; f; show y",
    "one that is unset": "export V_A=1; unset V_A; show x",
    "an empty environment": "export V_A=1; env -i PATH=$PATH bash -c 'show ${V_A:-none}'",
    "an environment without one": "export V_A=1 V_B=2; env -u V_A bash -c 'show ${V_A:-none} ${V_B:-none}'",
    "one of a pipe": "{ export V_A=1; show x; } | cat; show y",
    "in front of a command": "V_A=1 bash -c 'show ${V_A:-none}'; show ${V_A:-none}",
    "evaluated": "eval 'export V_A=1'; show x",
}


def of_bash(script: str, folder: Path) -> list[tuple[list[str], dict[str, str]]]:
    """(the words, the exported variables V_...) of each call of the program `show`."""
    program = folder / "show"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", script], cwd=folder, env=environment, check=False, timeout=60)
    return [tuple(json.loads(line)) for line in Path(f"{program}.seen").read_text().splitlines()]


def calls(script: str):
    return [each for each in read(script).commands if each.words[0] == "show"]


@pytest.mark.parametrize("name", WORDS)
def test_words_are_those_of_bash(tmp_path, name):
    expected = [words for words, _ in of_bash(WORDS[name], tmp_path)]
    assert [[plain(word) for word in each.words[1:]] for each in calls(WORDS[name])] == expected


@pytest.mark.parametrize("name", EXPORTS)
def test_exported_variables_are_those_of_bash(tmp_path, name):
    """Those whose values stand in words have become a part of the command, and are left out."""
    for (words, seen), each in zip(of_bash(EXPORTS[name], tmp_path), calls(EXPORTS[name]), strict=True):
        assert [plain(word) for word in each.words[1:]] == words
        found = {
            key: each.environment[key] for key in each.exported if key.startswith("V_") and key in each.environment
        }
        assert found.items() <= seen.items()
        assert set(seen) - set(found) <= {
            key for key in seen if f"${key}" in EXPORTS[name] or f"{{{key}" in EXPORTS[name]
        }


def test_a_variable_that_only_the_outer_shell_has_is_told():
    [each] = calls("V_A=1; bash -c 'show $V_A'")
    assert each.words == ("show", "$V_A")
