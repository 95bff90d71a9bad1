/** The least glibc and libstdc++ that the programs of a bundle run with, read off the versions of the symbols they need. */
const SYMBOLS = { glibc: /GLIBC_(\d+(?:\.\d+)+)\0/g, glibcxx: /GLIBCXX_(\d+(?:\.\d+)+)\0/g };
const ELF = Buffer.from('\x7fELF', 'latin1');

/** `files`: `[{path, data}]`. `{glibc: "2.34", glibcxx: "3.4.30"}`. */
export function requiredSymbols(files) {
  const highest = {};
  for (const [name, pattern] of Object.entries(SYMBOLS)) {
    const found = files.filter(({ data }) => data.subarray(0, 4).equals(ELF)).flatMap(({ data }) => versionStrings(data, pattern));
    highest[name] = found.sort(compare).at(-1);
  }
  return highest;
}

/** Version names stand in `.dynstr` as they are; nothing else of these files looks like one. */
function versionStrings(data, pattern) {
  return [...data.toString('latin1').matchAll(pattern)].map(([, version]) => version);
}

function compare(a, b) {
  const [left, right] = [a, b].map((version) => version.split('.').map(Number));
  for (let i = 0; i < Math.max(left.length, right.length); i++) if ((left[i] ?? 0) !== (right[i] ?? 0)) return (left[i] ?? 0) - (right[i] ?? 0);
  return 0;
}
