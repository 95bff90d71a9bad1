#!/usr/bin/env node
/**
 * repack.mjs FOLDER VERSION OUT [KEY]: an unpacked bundle, changed or not, as a bundle of another version; prints what was made. For
 * trying upgrades, broken ones among them, without building everything again.
 */
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join, relative } from 'node:path';
import { packBundle } from './pack.mjs';

const [folder, version, out, key] = process.argv.slice(2);
const { arch, node, llama, requires } = JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8'));
const paths = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile()).map((entry) => relative(folder, join(entry.parentPath, entry.name)));
const files = paths.filter((path) => path !== 'manifest.json').map((path) => ({ path, data: readFileSync(join(folder, path)), executable: (statSync(join(folder, path)).mode & 0o100) !== 0 }));
const made = await packBundle({ files, about: { version, arch, node, llama, requires }, out, keyPem: key === undefined ? null : readFileSync(key, 'utf8'), say: () => {}, level: 1 });
console.log(JSON.stringify(made));
