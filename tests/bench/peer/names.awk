# The rig's names of the quantities → the profile's, as a TOML list's inside.
BEGIN {
    split("V voltage I current P power S apparent-power Q reactive-power PF power-factor", pair, " ")
    for (i = 1; i < 12; i += 2) long[pair[i]] = pair[i + 1]
    long["F"] = "frequency"; long["Eimp"] = "energy-import"; long["Eexp"] = "energy-export"
    long["Etot"] = "energy-total"; long["Ertot"] = "reactive-energy-total"
}
{
    name = $1
    if (match(name, /[123]$/)) name = long[substr(name, 1, length(name) - 1)] "-l" substr(name, length(name))
    else name = long[name]
    printf "%s\"%s\"", (NR > 1 ? ", " : ""), name
}
