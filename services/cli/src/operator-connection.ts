/**
 * One command's connection to a coordinator's operator API: promises, the caller's AbortSignal, and errors that name
 * the next step. The one place that maps gRPC status to what the shell sees.
 */
import {
  type CallOptions, type ClientReadableStream, type ClientWritableStream, connectivityState, Metadata, type ServiceError, status,
} from '@grpc/grpc-js';
import {
  AccessServiceClient, type Artifact, ArtifactStoreServiceClient, type AuditEntry, type ChangeConfigRequest, type ChangeLabelsRequest, type ChangeLabelsResponse, type Coordinator, type CreateOperatorRequest,
  type CreateOperatorResponse, type Device, type ExplainConfigResponse, type ExplainLearnerResponse, FleetServiceClient, type GetDeviceHistoryResponse, type GetFleetStatusResponse, type GetLearnerResponse,
  IdentityServiceClient,
  InventoryServiceClient, type KillLambdaRequest, type KillSwitch, KnowledgeServiceClient, type LabelSelector, type MeasureDeviceRequest, type MeasureDeviceResponse, type Operator,
  OperatorServiceClient, type PlanRolloutRequest, type PlanRolloutResponse, type PutArtifactRequest, type PutArtifactResponse, type PutBlobsRequest, type ReadAuditRequest, type RevokeOperatorRequest, type Rollout, RolloutServiceClient,
  ModelStoreServiceClient, type PutBlobsResponse, type StagedRollout, type StartRolloutRequest, type StoredModel, type WatchDevicesRequest, type WatchDevicesResponse,
  type DeleteWindowsResponse, type ListWindowsResponse, type RouterWindow, WindowServiceClient,
} from '@moefleet/proto';
import { EXIT, exitCodeOfStatus, Failure, statusOf } from './failure';
import { type OperatorChannel, PLAINTEXT } from './operator-channel';

const UNARY_DEADLINE_MS = 10_000;
/** The chunks of a large model are looked up one by one, and whoever enters or removes one waits for its turn. */
const STORE_DEADLINE_MS = 180_000;
/** What a stream may take beyond the time its request grants the devices. */
const STREAM_SLACK_MS = 10_000;
/** Devices asked for at once. */
const PAGE_SIZE = 1000;
/** A command that watches finds a coordinator soon that is back, and notices one that is gone without a word. */
const RECONNECT = { 'grpc.initial_reconnect_backoff_ms': 250, 'grpc.max_reconnect_backoff_ms': 2000, 'grpc.keepalive_time_ms': 20_000, 'grpc.keepalive_timeout_ms': 10_000 };
/** A coordinator of an earlier release lists a whole fleet in one answer. */
const MAX_MESSAGE_BYTES = 1 << 30;

type Unary<Request, Response> = (
  request: Request, metadata: Metadata, options: Partial<CallOptions>, callback: (error: ServiceError | null, response: Response) => void,
) => { cancel(): void };

export class OperatorConnection {
  private readonly client: OperatorServiceClient;
  private readonly access: AccessServiceClient;
  private readonly inventory: InventoryServiceClient;
  private readonly rollouts: RolloutServiceClient;
  private readonly fleet: FleetServiceClient;
  private readonly knowledge: KnowledgeServiceClient;
  private readonly artifacts: ArtifactStoreServiceClient;
  private readonly models: ModelStoreServiceClient;
  /** for `unary` */
  readonly identity: IdentityServiceClient;
  private readonly windows: WindowServiceClient;

  constructor(private readonly address: string, private readonly signal: AbortSignal, private readonly channel: OperatorChannel = PLAINTEXT) {
    this.client = new OperatorServiceClient(address, channel.credentials, {
      ...channel.options,
      'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
      // A command fails at once where nobody listens; whoever runs it decides on trying again.
      'grpc.enable_retries': 0,
      ...RECONNECT,
    });
    // Options of a channel are those of its first client; interceptors are each client's own.
    const shared = { channelOverride: this.client.getChannel(), interceptors: channel.options.interceptors ?? [] };
    this.access = new AccessServiceClient(address, channel.credentials, shared);
    this.inventory = new InventoryServiceClient(address, channel.credentials, shared);
    this.rollouts = new RolloutServiceClient(address, channel.credentials, shared);
    this.artifacts = new ArtifactStoreServiceClient(address, channel.credentials, shared);
    this.models = new ModelStoreServiceClient(address, channel.credentials, shared);
    this.fleet = new FleetServiceClient(address, channel.credentials, shared);
    this.knowledge = new KnowledgeServiceClient(address, channel.credentials, shared);
    this.identity = new IdentityServiceClient(address, channel.credentials, shared);
    this.windows = new WindowServiceClient(address, channel.credentials, shared);
  }

  /** Page by page; a coordinator of an earlier release answers with all in one. */
  async listDevices(selector?: LabelSelector): Promise<Device[]> {
    const devices: Device[] = [];
    for (let pageToken = ''; ;) {
      const page = await this.unary(this.client.listDevices.bind(this.client), { selector, pageSize: PAGE_SIZE, pageToken });
      devices.push(...page.devices);
      pageToken = page.nextPageToken;
      if (pageToken === '') break;
    }
    return devices.sort((a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0));
  }

  async getDevice(deviceId: string): Promise<Device> {
    const { device } = await this.unary(this.client.getDevice.bind(this.client), { deviceId }, unknownDevice(deviceId));
    if (!device) throw new Failure(`the coordinator at ${this.address} answered without a device`);
    return device;
  }

  /** Calls `onRollout` at each state the coordinator tells; resolves with the last. */
  async changeConfig(request: ChangeConfigRequest, onRollout: (rollout: Rollout) => void): Promise<Rollout | { stagedRolloutId: string }> {
    const deadline = Date.now() + (request.timeoutMs || 30_000) + STREAM_SLACK_MS;
    let last: Rollout | undefined;
    let staged = '';
    await this.stream(this.client.changeConfig(request, new Metadata(), { deadline }), ({ rollout, stagedRolloutId }) => {
      staged ||= stagedRolloutId;
      if (!rollout) return;
      last = rollout;
      onRollout(rollout);
    });
    if (staged) return { stagedRolloutId: staged };
    if (!last) throw new Failure(`the coordinator at ${this.address} ended without telling the outcome; look at it with: moefleet devices`);
    return last;
  }

  planRollout(request: PlanRolloutRequest): Promise<PlanRolloutResponse> {
    return this.unary(this.rollouts.planRollout.bind(this.rollouts), request);
  }

  async startRollout(request: StartRolloutRequest): Promise<StagedRollout> {
    return this.whole((await this.unary(this.rollouts.startRollout.bind(this.rollouts), request)).rollout);
  }

  async listRollouts(): Promise<StagedRollout[]> {
    return (await this.unary(this.rollouts.listRollouts.bind(this.rollouts), {})).rollouts;
  }

  async getRollout(rolloutId: string): Promise<StagedRollout> {
    return this.whole((await this.unary(this.rollouts.getStagedRollout.bind(this.rollouts), { rolloutId })).rollout);
  }

  async orderRollout(order: 'pause' | 'resume' | 'rollback', rolloutId: string, why: string): Promise<StagedRollout> {
    const { pauseRollout, resumeRollout, rollbackRollout } = this.rollouts;
    const call = { pause: pauseRollout, resume: resumeRollout, rollback: rollbackRollout }[order] as typeof pauseRollout;
    return this.whole((await this.unary(call.bind(this.rollouts), { rolloutId, why })).rollout);
  }

  /** No deadline: a rollout takes its time. Ends with it, or where `goOn` says so; resolves with the last state. */
  async watchRollout(rolloutId: string, goOn: (rollout: StagedRollout) => boolean): Promise<StagedRollout> {
    let last: StagedRollout | undefined;
    let enough = false;
    const call = this.rollouts.watchRollout({ rolloutId });
    await this.stream(call, ({ rollout }) => {
      if (!rollout || enough) return;
      last = rollout;
      enough = !goOn(rollout);
      if (enough) call.cancel();
    }).catch((error: unknown) => {
      if (!enough) throw error;
    });
    return this.whole(last);
  }

  private whole(rollout: StagedRollout | undefined): StagedRollout {
    if (!rollout) throw new Failure(`the coordinator at ${this.address} answered without a rollout`);
    return rollout;
  }

  /** null from a coordinator that knows no kill switch. */
  async killSwitch(): Promise<KillSwitch | null> {
    try {
      return (await this.unary(this.rollouts.getKillSwitch.bind(this.rollouts), {})).killSwitch ?? null;
    } catch (error) {
      if (statusOf(error) === status.UNIMPLEMENTED) return null;
      throw error;
    }
  }

  /** Like `changeConfig`, for the kill switch. */
  async switchLambda(to: 'off' | 'on', request: KillLambdaRequest, onRollout: (rollout: Rollout) => void): Promise<Rollout> {
    const deadline = Date.now() + (request.timeoutMs || 30_000) + STREAM_SLACK_MS;
    const call = to === 'off' ? this.rollouts.killLambda(request, new Metadata(), { deadline }) : this.rollouts.releaseLambda(request, new Metadata(), { deadline });
    let last: Rollout | undefined;
    await this.stream(call, ({ rollout }) => {
      if (!rollout) return;
      last = rollout;
      onRollout(rollout);
    });
    if (!last) throw new Failure(`the coordinator at ${this.address} ended without telling the outcome; look at it with: moefleet devices`);
    return last;
  }

  /** No deadline: the device may have requests before this one. */
  async measureDevice(request: MeasureDeviceRequest, onUpdate: (update: MeasureDeviceResponse) => void): Promise<void> {
    await this.stream(this.client.measureDevice(request), onUpdate);
  }

  async fleetStatus(): Promise<GetFleetStatusResponse> {
    return this.unary(this.fleet.getFleetStatus.bind(this.fleet), {});
  }

  async deviceHistory(deviceId: string): Promise<GetDeviceHistoryResponse> {
    return this.unary(this.fleet.getDeviceHistory.bind(this.fleet), { deviceId }, unknownDevice(deviceId));
  }

  async acceptRestore(deviceId: string, why: string): Promise<string[]> {
    return (await this.unary(this.fleet.acceptRestore.bind(this.fleet), { deviceId, why })).deviceIds;
  }

  async listCoordinators(): Promise<Coordinator[]> {
    return (await this.unary(this.fleet.listCoordinators.bind(this.fleet), {})).coordinators;
  }

  async listWindows(deviceId: string): Promise<ListWindowsResponse> {
    return this.unary(this.windows.listWindows.bind(this.windows), { deviceId }, unknownDevice(deviceId));
  }

  /** Oldest first. */
  async readWindows(deviceId: string): Promise<RouterWindow[]> {
    const windows: RouterWindow[] = [];
    await this.stream(this.windows.readWindows({ deviceId }), ({ window }) => { if (window) windows.push(window); });
    return windows;
  }

  async deleteWindows(deviceId: string, why: string): Promise<DeleteWindowsResponse> {
    return this.unary(this.windows.deleteWindows.bind(this.windows), { deviceId, why }, unknownDevice(deviceId));
  }

  async runLearner(): Promise<string> {
    return (await this.unary(this.client.runLearner.bind(this.client), {})).jobId;
  }

  async explainConfig(deviceId: string): Promise<ExplainConfigResponse> {
    return this.unary(this.inventory.explainConfig.bind(this.inventory), { deviceId }, unknownDevice(deviceId));
  }

  /** Without a deadline; ends by the signal, or when the coordinator goes. */
  async watchDevices(request: WatchDevicesRequest, onMessage: (message: WatchDevicesResponse) => void): Promise<void> {
    await this.stream(this.inventory.watchDevices(request), onMessage);
  }

  async changeLabels(request: ChangeLabelsRequest): Promise<ChangeLabelsResponse> {
    return this.unary(this.inventory.changeLabels.bind(this.inventory), request);
  }

  async createOperator(request: CreateOperatorRequest): Promise<CreateOperatorResponse> {
    return this.unary(this.access.createOperator.bind(this.access), request);
  }

  async listOperators(): Promise<Operator[]> {
    return (await this.unary(this.access.listOperators.bind(this.access), {})).operators;
  }

  async revokeOperator(request: RevokeOperatorRequest): Promise<Operator> {
    const { operator } = await this.unary(this.access.revokeOperator.bind(this.access), request);
    if (!operator) throw new Failure(`the coordinator at ${this.address} answered without an operator`);
    return operator;
  }

  /** Ends with the last entry that is there; one who follows ends by the signal alone. */
  async readAudit(request: ReadAuditRequest, onEntry: (entry: AuditEntry) => void): Promise<void> {
    await this.stream(this.access.readAudit(request), ({ entry }) => { if (entry) onEntry(entry); });
  }

  async explainLearner(deviceId: string): Promise<ExplainLearnerResponse> {
    return this.unary(this.knowledge.explainLearner.bind(this.knowledge), { deviceId }, unknownDevice(deviceId));
  }

  async listArtifacts(): Promise<Artifact[]> {
    return (await this.unary(this.artifacts.listArtifacts.bind(this.artifacts), {})).artifacts;
  }

  /** No deadline: it takes what the line takes. `onSent` is told the bytes that have left. */
  async putArtifact(artifact: Artifact, parts: AsyncIterable<Buffer>, onSent: (bytes: number) => void): Promise<Artifact> {
    let sent = 0;
    async function* messages(): AsyncGenerator<PutArtifactRequest> {
      yield { body: { $case: 'head', value: artifact } };
      for await (const value of parts) {
        yield { body: { $case: 'data', value } };
        onSent(sent += value.length);
      }
    }
    const { artifact: kept } = await this.upload<PutArtifactRequest, PutArtifactResponse>((done) => this.artifacts.putArtifact(done), messages());
    if (!kept) throw new Failure(`the coordinator at ${this.address} answered without an artifact`);
    return kept;
  }

  async findMissingBlobs(sha256: Buffer[]): Promise<Buffer[]> {
    return (await this.unary(this.models.findMissingBlobs.bind(this.models), { sha256 }, {}, STORE_DEADLINE_MS)).sha256;
  }

  /** No deadline. `onSent` is told the bytes of each that has left. */
  async putBlobs(blobs: AsyncIterable<PutBlobsRequest>, onSent: (bytes: number) => void): Promise<void> {
    async function* messages(): AsyncGenerator<PutBlobsRequest> {
      for await (const blob of blobs) {
        yield blob;
        onSent(blob.data.length);
      }
    }
    await this.upload<PutBlobsRequest, PutBlobsResponse>((done) => this.models.putBlobs(done), messages());
  }

  async putModel(name: string, manifestSha256: string): Promise<StoredModel> {
    const { model } = await this.unary(this.models.putModel.bind(this.models), { name, manifestSha256 }, {}, STORE_DEADLINE_MS);
    if (!model) throw new Failure(`the coordinator at ${this.address} answered without a model`);
    return model;
  }

  async listModels(): Promise<StoredModel[]> {
    return (await this.unary(this.models.listModels.bind(this.models), {}, {}, STORE_DEADLINE_MS)).models;
  }

  async removeModel(name: string): Promise<number> {
    return Number((await this.unary(this.models.removeModel.bind(this.models), { name }, {}, STORE_DEADLINE_MS)).freedBytes);
  }

  async getLearner(): Promise<GetLearnerResponse> {
    return this.unary(this.client.getLearner.bind(this.client), {});
  }

  close(): void {
    this.client.close();
  }

  /** `texts`: what to say instead of the coordinator's words, by status */
  unary<Request, Response>(call: Unary<Request, Response>, request: Request, texts: Record<number, string> = {}, deadlineMs = UNARY_DEADLINE_MS): Promise<Response> {
    return new Promise((resolve, reject) => {
      const sent = call(request, new Metadata(), { deadline: Date.now() + deadlineMs }, (error, response) => {
        this.signal.removeEventListener('abort', cancel);
        if (error) reject(this.failure(error, texts));
        else resolve(response);
      });
      const cancel = () => sent.cancel();
      this.signal.addEventListener('abort', cancel, { once: true });
      if (this.signal.aborted) cancel();
    });
  }

  /** Sends one message after the other, the next when the one before has left. */
  private async upload<Request, Response>(open: (done: (error: ServiceError | null, response: Response) => void) => ClientWritableStream<Request>, messages: AsyncIterable<Request>): Promise<Response> {
    let settle: (error: ServiceError | null, response: Response) => void = () => {};
    let over = false;
    const answer = new Promise<Response>((resolve, reject) => {
      settle = (error, response) => {
        over = true;
        if (error) reject(this.failure(error));
        else resolve(response);
      };
    });
    // It may come, as a refusal, before it is waited for.
    answer.catch(() => {});
    const call = open((error, response) => settle(error, response));
    const cancel = () => call.cancel();
    this.signal.addEventListener('abort', cancel, { once: true });
    try {
      for await (const message of messages) {
        if (over) break;
        // A call that has failed writes no more, and says so to nobody.
        await Promise.race([new Promise((resolve) => { call.write(message, resolve); }), answer.catch(() => {})]);
        if (over) break;
      }
      if (!over) call.end();
      return await answer;
    } catch (error) {
      // Of what the messages are made from: nobody is left to end the call.
      if (!over) call.cancel();
      throw error;
    } finally {
      this.signal.removeEventListener('abort', cancel);
    }
  }

  private stream<Response>(call: ClientReadableStream<Response>, onMessage: (message: Response) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      const cancel = () => call.cancel();
      this.signal.addEventListener('abort', cancel, { once: true });
      if (this.signal.aborted) cancel();
      const settle = (error: ServiceError | null) => {
        this.signal.removeEventListener('abort', cancel);
        if (error) reject(this.failure(error));
        else resolve();
      };
      call.on('data', onMessage);
      call.on('error', (error: ServiceError) => settle(error));
      call.on('end', () => settle(null));
    });
  }

  private failure(error: ServiceError, texts: Record<number, string> = {}): Failure {
    if (this.signal.aborted) return new Failure('interrupted', EXIT.interrupted);
    const said = error.details || error.message;
    const known = texts[error.code];
    if (known) return new Failure(known, exitCodeOfStatus(error.code), { cause: error });
    // UNAVAILABLE is also what a coordinator answers that is itself missing something: a device, or Redis.
    if (error.code === status.UNAVAILABLE && !this.connected()) {
      return new Failure(
        `cannot reach the coordinator at ${this.address}; start one with \`moefleet coordinator run\` or name it with --operator${this.channel.hint(said)}`,
        EXIT.failed, { cause: error });
    }
    if (error.code === status.DEADLINE_EXCEEDED) {
      return new Failure(`the coordinator at ${this.address} did not answer in time; see its log, then try again`, EXIT.failed, { cause: error });
    }
    if (error.code === status.UNIMPLEMENTED) {
      return new Failure(`the program at ${this.address} is no coordinator's operator API, or an older one (${said}); check --operator`, EXIT.failed, { cause: error });
    }
    return new Failure(said, exitCodeOfStatus(error.code), { cause: error });
  }

  private connected(): boolean {
    return this.client.getChannel().getConnectivityState(false) === connectivityState.READY;
  }
}

function unknownDevice(deviceId: string): Record<number, string> {
  return { [status.NOT_FOUND]: `no device "${deviceId}"; list them with: moefleet devices` };
}
