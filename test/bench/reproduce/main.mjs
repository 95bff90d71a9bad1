/**
 * The tables of both papers, measured on a model of ours: writes, per model, one JSON file per table, plots, and a page,
 * and over all of them the results page. What was measured is kept, so an interrupted run goes on where it was.
 */
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { CellStore } from './cell-store.mjs';
import { domainTexts } from './domain-texts.mjs';
import { ModelBench } from './model-bench.mjs';
import { indexPage, modelPage } from './page.mjs';
import { TABLES } from './tables/index.mjs';

const root = join(import.meta.dirname ?? new URL('.', import.meta.url).pathname, '..', '..', '..');
const fixtures = join(root, 'test', 'fixtures');

const HELP = `node test/bench/reproduce/main.mjs: the tables of arXiv 2412.00099 and 2511.05814 on models of your own

  --model <files>    GGUF models, separated by commas (default: the reference model in test/fixtures)
  --texts <folder>   .txt files, one per domain, beside or in place of test/fixtures' wikitext, math and code
  --routes <folder>  recorded .route.csv files of other models, for the table of eviction policies
  --gsm8k <folder>   train.jsonl and test.jsonl of GSM8K; without it that table is left out
  --mmlu <folder>    dev/ and test/ of MMLU's CSV files; without it that table is left out
  --items <n>        questions of GSM8K and MMLU (default: 100)
  --shots <n>        worked examples before a question, as many of them as the model's context holds (default: 8, MMLU 5)
  --only <names>     tables, separated by commas: ${TABLES.map(({ name }) => name).join(', ')}
  --tokens <n>       tokens of each text (default: 8192)
  --threads <n>      compute threads (default: 1)
  --out <folder>     where results go (default: test/bench/results)
  --cells <folder>   what was measured already (default: <out>/.cells)
  --json             print the figures too

Examples:
  node test/bench/reproduce/main.mjs --only rank-cost,lifetime --tokens 2048 --out /tmp/results
  node test/bench/reproduce/main.mjs --model a.gguf,b.gguf --texts my-texts
`;

class UsageError extends Error {}

function readOptions(argv) {
  let values;
  try {
    ({ values } = parseArgs({
      args: argv,
      options: {
        model: { type: 'string', default: join(fixtures, 'tinymoe-17m-q8_0.gguf') }, texts: { type: 'string' }, routes: { type: 'string' },
        gsm8k: { type: 'string' }, mmlu: { type: 'string' }, items: { type: 'string', default: '100' }, shots: { type: 'string' },
        only: { type: 'string' }, tokens: { type: 'string', default: '8192' }, threads: { type: 'string', default: '1' },
        out: { type: 'string', default: join(root, 'test', 'bench', 'results') }, cells: { type: 'string' },
        json: { type: 'boolean', default: false }, help: { type: 'boolean', short: 'h', default: false },
      },
    }));
  } catch (error) {
    throw new UsageError(`${error.message}; see --help`);
  }
  const whole = (name, least) => {
    const value = Number(values[name]);
    if (!Number.isSafeInteger(value) || value < least) throw new UsageError(`--${name}: expected a whole number from ${least}, found '${values[name]}'`);
    return value;
  };
  const folder = (name) => {
    if (values[name] === undefined) return null;
    if (!statSync(values[name], { throwIfNoEntry: false })?.isDirectory()) throw new UsageError(`--${name}: no folder '${values[name]}'`);
    return values[name];
  };
  const wanted = values.only?.split(',') ?? null;
  const unknown = wanted?.find((name) => !TABLES.some((table) => table.name === name));
  if (unknown !== undefined) throw new UsageError(`--only: no table '${unknown}'; there are ${TABLES.map(({ name }) => name).join(', ')}`);
  return {
    help: values.help, json: values.json, models: values.model.split(','), out: values.out, cells: values.cells ?? join(values.out, '.cells'),
    tokens: whole('tokens', 1), threads: whole('threads', 1), items: whole('items', 1), shots: values.shots === undefined ? null : whole('shots', 0),
    texts: folder('texts'), routes: folder('routes'), gsm8k: folder('gsm8k'), mmlu: folder('mmlu'),
    tables: TABLES.filter(({ name }) => wanted === null || wanted.includes(name)),
  };
}

/** One line that is rewritten on a terminal, and one every two seconds elsewhere. */
function progressLine(stream) {
  let [last, title] = [0, ''];
  const counts = { found: 0, measuring: 0 };
  return {
    table(name) { title = name; },
    cell(kind) {
      counts[kind] += 1;
      const now = Date.now();
      if (!stream.isTTY && now - last < 2000) return;
      last = now;
      stream.write(`${stream.isTTY ? '\r\x1b[K' : ''}${title}: ${counts.measuring} cells measured, ${counts.found} found${stream.isTTY ? '' : '\n'}`);
    },
    end() { if (stream.isTTY) stream.write('\n'); },
  };
}

async function measureModel(path, options, texts, progress) {
  const bench = await ModelBench.open({
    path, texts, store: new CellStore(options.cells), tokens: options.tokens, threads: options.threads, onProgress: (kind) => progress.cell(kind),
  });
  try {
    const folder = join(options.out, bench.name);
    mkdirSync(folder, { recursive: true });
    const { architecture, experts, topK, moeLayers } = bench.info;
    const about = { name: bench.name, hash: bench.hash, architecture, layers: moeLayers.length, experts, topK, engine: bench.engineVersion, tokens: options.tokens, context: bench.context };
    for (const table of options.tables) {
      progress.table(`${bench.name}, ${table.name}`);
      const data = await table.measure(bench, options);
      // Null: the table needs data that was not given.
      if (data === null) continue;
      writeFileSync(join(folder, `${table.name}.json`), `${JSON.stringify({ table: table.name, model: about, ...data }, null, 1)}\n`);
      for (const [name, svg] of Object.entries(table.plots?.(data) ?? {})) writeFileSync(join(folder, `${name}.svg`), svg);
    }
    writeFileSync(join(folder, 'README.md'), modelPage(folder, TABLES));
    return bench.name;
  } finally {
    await bench.close();
  }
}

async function main() {
  const options = readOptions(process.argv.slice(2));
  if (options.help) return void process.stdout.write(HELP);
  const texts = domainTexts(fixtures, options.texts);
  const progress = progressLine(process.stderr);
  const names = [];
  for (const path of options.models) names.push(await measureModel(path, options, texts, progress));
  progress.end();
  writeFileSync(join(options.out, 'README.md'), indexPage(options.out, TABLES));
  if (options.json) {
    const read = (name, table) => JSON.parse(readFileSync(join(options.out, name, `${table.name}.json`), 'utf8'));
    const present = (name) => options.tables.filter((table) => statSync(join(options.out, name, `${table.name}.json`), { throwIfNoEntry: false }));
    process.stdout.write(`${JSON.stringify(names.map((name) => ({ model: name, tables: present(name).map((table) => read(name, table)) })), null, 2)}\n`);
  }
}

main().catch((error) => {
  process.stderr.write(`${error instanceof UsageError || error.code ? error.message : error.stack}\n`);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
