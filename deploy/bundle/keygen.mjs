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

const { values } = parseArgs({ options: { dir: { type: 'string', default: 'fleet' }, json: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } } });
if (values.help) {
  console.log('usage: npm run bundle:keygen -- [--dir FOLDER] [--json]\n\nWrites FOLDER/bundle-key.pem (private) and FOLDER/bundle-key.pub; FOLDER is "fleet" unless given.\n\nExample:\n  npm run bundle:keygen -- --dir fleet');
  process.exit(0);
}
const folder = resolve(values.dir);
const [privateFile, publicFile] = [join(folder, 'bundle-key.pem'), join(folder, 'bundle-key.pub')];
for (const file of [privateFile, publicFile]) {
  if (existsSync(file)) {
    console.error(`bundle: ${file} is there already; agents that have pinned it accept no other key. Give another --dir, or move it away`);
    process.exit(1);
  }
}
const pem = generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' });
const { keyId, text } = publicKeyOf(pem);
mkdirSync(folder, { recursive: true, mode: 0o700 });
writeFileSync(privateFile, pem, { mode: 0o600, flag: 'wx' });
writeFileSync(publicFile, `untrusted comment: moefleet bundle key ${keyId}\n${text}\n`, { flag: 'wx' });
if (values.json) console.log(JSON.stringify({ keyId, publicKey: text, privateFile, publicFile }));
else console.log(`key ${keyId}\n  private  ${privateFile} (keep it off the coordinator)\n  public   ${publicFile} (beside the fleet's ca.pem, so that agents pin it when they enrol)`);
