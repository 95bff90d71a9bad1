/**
 * One device of a site: fetches a model with the agent's own code and serves it to those beside it, without an agent around it. Says
 * on standard output what the agent would tell its coordinator and what came of it, takes on standard input whom the coordinator
 * would name, and serves until that ends.
 *
 * node site-device.mjs ID FOLDER MANIFEST_SHA256 BYTES HOST:PORT TLS_FOLDER
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { root } from '../shared.mjs';

const require = createRequire(import.meta.url);
const load = (name) => require(join(root, 'edge-agent', 'dist', 'models', `${name}.js`));
const { BlobClient } = load('blob-client');
const { CoordinatorBlobs } = load('coordinator-blobs');
const { FetchAllowance } = load('fetch-allowance');
const { FetchProgress } = load('fetch-progress');
const { Holdings } = load('holdings');
const { fetchModel } = load('model-fetch');
const { ModelsFolder } = load('models-folder');
const { PeerExchange } = load('peer-exchange');
const { COORDINATOR_NAME } = require(join(root, 'services', 'runtime', 'dist', 'index.js'));

const [id, path, manifestSha256, bytes, address, tlsFolder] = process.argv.slice(2);
const [host, port] = address.split(':');
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const log = { info() {}, warn: (fields, text) => say({ warning: text, ...fields }), error: (fields, text) => say({ warning: text, ...fields }) };
const pem = (name) => readFileSync(join(tlsFolder, name), 'utf8');
const tls = { ca: pem('ca.pem'), key: pem('key.pem'), cert: pem('cert.pem') };
const now = () => performance.now();

const folder = new ModelsFolder(path);
const holdings = new Holdings(folder);
const exchange = new PeerExchange({ deviceId: id, listen: null, plainHost: null, identity: () => tls, holdings, log, send: (holding) => say({ holding }) });
createInterface({ input: process.stdin }).on('line', (line) => exchange.receive({ manifestSha256, peers: JSON.parse(line) })).on('close', () => process.exit(0));

const client = new BlobClient({ host, port: Number(port), tls: { ...tls, servername: COORDINATOR_NAME } });
const coordinator = new CoordinatorBlobs({ client: () => client, allowance: new FetchAllowance({ bytesPerSecond: null, quietHours: null }, now, () => new Date()), log });
const progress = new FetchProgress(manifestSha256, Number(bytes), now);
await exchange.online();
const peers = await exchange.begin(manifestSha256);
const reports = setInterval(() => say({ done: progress.bytesDone, ...progress.sources, waiting: progress.waiting }), 5_000);
await fetchModel({ manifestSha256, bytes: Number(bytes) }, { folder, coordinator, peers, setUpPath: null, check: async () => {}, onPart: (part) => holdings.begin(part), log }, progress, new AbortController().signal);
clearInterval(reports);
holdings.whole(manifestSha256);
exchange.end(manifestSha256);
say({ whole: true, ...progress.sources });
