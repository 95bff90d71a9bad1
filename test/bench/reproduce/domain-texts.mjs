/** The texts to measure on: the three fixtures, and the .txt files of a folder beside them or in their place. */
import { readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';

const FIXTURES = ['wikitext', 'math', 'code'];

/** `[{name, text}]`, the fixtures' names first, the others by name. */
export function domainTexts(fixtures, folder) {
  const paths = new Map(FIXTURES.map((name) => [name, join(fixtures, `${name}.txt`)]));
  if (folder !== null) {
    const files = readdirSync(folder).filter((file) => file.endsWith('.txt')).sort();
    if (files.length === 0) throw new Error(`--texts ${folder}: no .txt file in it; give a folder with one text per domain`);
    for (const file of files) paths.set(basename(file, '.txt'), join(folder, file));
  }
  return [...paths].map(([name, path]) => ({ name, text: readFileSync(path, 'utf8') }));
}
