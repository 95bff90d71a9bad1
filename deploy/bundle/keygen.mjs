#!/usr/bin/env node
/**
 * Makes the key that signs a fleet's bundles. `npm run bundle:keygen -- --dir FOLDER` leaves `bundle-key.pem` (Ed25519,
 * 0600; whoever has it can put any program on every device of the fleet) and `bundle-key.pub` (in minisign's format;
 * agents pin it when they enrol).
 */
import { generateKeyPairSync } from 'node:crypto';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { publicKeyOf } from '@moefleet/runtime';

const HELP = `usage: npm run bundle:keygen -- [--dir FOLDER] [--json]

Writes FOLDER/bundle-key.pem (private) and FOLDER/bundle-key.pub; FOLDER is "fleet" unless given.

Example:
  npm run bundle:keygen -- --dir fleet`;

function makeKey(folder) {
  const [privateFile, publicFile] = [join(folder, 'bundle-key.pem'), join(folder, 'bundle-key.pub')];
  const there = [privateFile, publicFile].find((file) => existsSync(file));
  if (there !== undefined) throw new Error(`${there} is there already; agents that have pinned it accept no other key. Give another --dir, or move it away`);
  const pem = generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' });
  const { keyId, text } = publicKeyOf(pem);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  writeFileSync(privateFile, pem, { mode: 0o600, flag: 'wx' });
  writeFileSync(publicFile, `untrusted comment: moefleet bundle key ${keyId}\n${text}\n`, { flag: 'wx' });
  return { keyId, publicKey: text, privateFile, publicFile };
}

function madeText({ keyId, privateFile, publicFile }) {
  return `key ${keyId}\n  private  ${privateFile} (keep it off the coordinator)\n  public   ${publicFile} (beside the fleet's ca.pem, so that agents pin it when they enrol)`;
}

try {
  const { values } = parseArgs({ options: { dir: { type: 'string', default: 'fleet' }, json: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } } });
  if (values.help) console.log(HELP);
  else {
    const made = makeKey(resolve(values.dir));
    console.log(values.json ? JSON.stringify(made) : madeText(made));
  }
} catch (error) {
  console.error(`bundle: ${error.message}`);
  process.exitCode = 1;
}
