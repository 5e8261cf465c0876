// Of two pages that hold what was searched for, the one that users read comes first
var Scorer = {
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
  score: ([docname, , , , score]) => {
    const part = docname.split("/")[0]
    const first = {index: 60, tutorials: 50, guides: 50, api: -20}[part] ?? 0
    return score + first + (docname === "guides/options" ? 50 : 0)
  },
}
