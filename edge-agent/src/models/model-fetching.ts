/** Builds what fetches and serves models from the agent's settings, and passes on what the coordinator says of them. */
import type { ModelHolding, ModelPeers } from '@moefleet/proto';
import { COORDINATOR_NAME, type Logger } from '@moefleet/runtime';
import type { AgentConfig } from '../config';
import type { DeviceIdentity } from '../control/identity';
import type { EngineHostClient } from '../host/host-client';
import { BlobClient } from './blob-client';
import { CoordinatorBlobs } from './coordinator-blobs';
import { FetchAllowance } from './fetch-allowance';
import type { Arrived } from './fetch-progress';
import { Holdings } from './holdings';
import { ModelKeeper } from './model-keeper';
import type { ModelsFolder } from './models-folder';
import { PeerExchange } from './peer-exchange';

const LOOPBACK = /^(localhost|127\.\d+\.\d+\.\d+|::1)$/;

export interface ModelFetchingOptions {
  config: Pick<AgentConfig, 'coordinator' | 'deviceId' | 'fetchLimits' | 'modelPath' | 'peerListen' | 'peers'>;
  folder: ModelsFolder;
  identity: DeviceIdentity;
  host: EngineHostClient;
  load: (path: string) => Promise<void>;
  check: (path: string, signal: AbortSignal) => Promise<void>;
  /** to the coordinator */
  send: (holding: ModelHolding) => void;
  log: Logger;
}

export class ModelFetching {
  readonly keeper: ModelKeeper;
  private readonly exchange: PeerExchange | null;
  /** of the coordinator that was met last; null while none that keeps models was */
  private port: number | null = null;
  private client: { made: BlobClient; port: number; certificate: string | null } | null = null;
  private readonly coordinatorHost: string | null;

  constructor(private readonly options: ModelFetchingOptions) {
    const { config, folder, identity, host, load, check, send, log } = options;
    this.coordinatorHost = config.coordinator === null ? null : hostOf(config.coordinator);
    const holdings = new Holdings(folder);
    const allowance = new FetchAllowance(config.fetchLimits, () => performance.now(), () => new Date());
    this.exchange = this.coordinatorHost === null || !config.peers ? null : new PeerExchange({
      deviceId: config.deviceId, listen: config.peerListen, plainHost: LOOPBACK.test(this.coordinatorHost) ? '127.0.0.1' : null, holdings, send, log,
      identity: () => (identity.tls === null || identity.mayServe ? identity.tls : 'cannot serve'),
    });
    identity.onKept(() => this.exchange?.renewed());
    this.keeper = new ModelKeeper({
      folder, holdings, allowance, exchange: this.exchange, host, load, check, log, setUpPath: config.modelPath,
      coordinator: this.coordinatorHost === null ? null : new CoordinatorBlobs({ client: () => this.blobs(), allowance, log }),
    });
  }

  /** A stream has begun; `blobPort` undefined: this coordinator keeps no models. */
  online(blobPort: number | undefined): void {
    if (blobPort === undefined) return;
    this.port = blobPort;
    this.exchange?.online().catch((error: Error) => this.options.log.warn({ reason: error.message }, 'what this device holds of models cannot be told'));
  }

  offline(): void {
    this.exchange?.offline();
  }

  /** since this program began */
  get traffic(): { arrived: Arrived; served: number } {
    return { arrived: this.keeper.arrived, served: this.exchange?.bytesSent ?? 0 };
  }

  receivePeers(peers: ModelPeers): void {
    this.exchange?.receive(peers);
  }

  /** To the coordinator met last, also while its stream is away: the certificate may be another than last time. */
  private blobs(): BlobClient | null {
    const { identity } = this.options;
    if (this.port === null) return null;
    const { tls } = identity;
    if (this.client?.port !== this.port || this.client.certificate !== (tls?.cert ?? null)) {
      this.client?.made.close();
      const made = new BlobClient({ host: this.coordinatorHost!, port: this.port, tls: tls && { ...tls, servername: COORDINATOR_NAME } });
      this.client = { made, port: this.port, certificate: tls?.cert ?? null };
    }
    return this.client.made;
  }
}

function hostOf(address: string): string {
  return address.slice(0, address.lastIndexOf(':')).replace(/^\[|\]$/g, '');
}
