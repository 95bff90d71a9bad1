/** The pages, made anew from the JSON files of a folder: a table that was not measured this time stays as it was. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const FINDINGS = 'findings.md';

function readTable(folder, name) {
  const path = join(folder, `${name}.json`);
  return existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) : null;
}

/** Every table of one model, with its plots. */
export function modelPage(folder, tables) {
  const present = tables.map((table) => ({ table, data: readTable(folder, table.name) })).filter(({ data }) => data !== null);
  if (present.length === 0) throw new Error(`${folder}: no table there`);
  const { name, hash, architecture, layers, experts, topK } = present[0].data.model;
  const sections = present.map(({ table, data }) => {
    const images = Object.keys(table.plots?.(data) ?? {}).map((file) => `![${table.title}](${file}.svg)`);
    return [`## ${table.title}`, `*${data.model.tokens} tokens of each text in windows of ${data.model.context}; [figures](${table.name}.json)*`, table.page(data), ...images].join('\n\n');
  });
  return `# ${name}

${architecture}, ${layers} layers with ${experts} experts each, top-${topK}; hash ${hash.slice(0, 16)}. Made by \`node test/bench/reproduce/main.mjs\`;
what a table compares is scored on the same tokens. [What follows from it](../README.md).

${sections.join('\n\n')}
`;
}

/** What the figures say, written by hand, and where they are. */
export function indexPage(folder, tables) {
  const models = readdirSync(folder, { withFileTypes: true }).filter((entry) => entry.isDirectory() && existsSync(join(folder, entry.name, 'README.md'))).map(({ name }) => name).sort();
  const findings = existsSync(join(folder, FINDINGS)) ? `\n${readFileSync(join(folder, FINDINGS), 'utf8').trim()}\n` : '';
  const links = models.map((model) => `- [${model}](${model}/README.md): ${tables.filter(({ name }) => existsSync(join(folder, model, `${name}.json`))).map(({ title }) => title.toLowerCase()).join('; ')}`);
  return `# The papers' tables, on our models

arXiv 2412.00099 (cache-conditional experts) and arXiv 2511.05814 (caching and pre-fetching in offloading), measured again by
\`node test/bench/reproduce/main.mjs\` (\`--help\`). Every measured figure is ours; what a paper claims is said where it is held against them.

${links.join('\n')}
${findings}`;
}
