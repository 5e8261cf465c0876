// Of two pages that hold what was searched for, the one that users read comes first; OPTIONS are their names
const asked = (new URLSearchParams(location.search).get("q") ?? "").trim().replace(/^--/, "").replaceAll("-", "_")
var Scorer = {
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
  score: ([docname, , , , score]) => {
    if (docname === "guides/options" && OPTIONS.includes(asked)) return score + 100
    return score + ({index: 50, tutorials: 50, guides: 50, api: -20}[docname.split("/")[0]] ?? 0)
  },
}
